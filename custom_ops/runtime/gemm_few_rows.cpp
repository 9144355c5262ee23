#include "gemm_few_rows.h"

#include "gemm_arguments.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

bool Serves(const GemmSpec& spec) {
  const bool even = spec.features % 16 == 0 && spec.K % 16 == 0;
  if (NeedsSumsApart(spec, spec.K / 8)) return false;  // the eight warps of a block share K
  return even && (spec.block == 0 || spec.block >= 16);
}

// Of two kernels for as many rows: the most output features a block (they share the rows of X) that still
// leave every multiprocessor two blocks.
bool Better(const FewRowsImage& a, const FewRowsImage& b, const GemmNode& node) {
  const int64_t N = node.spec.N, multiprocessors = node.multiprocessors;
  const auto fills = [&](const FewRowsImage& row) {
    return CeilDivide(N, row.block_n) >= 2 * multiprocessors;
  };
  if (fills(a) != fills(b)) return fills(a);
  return fills(a) ? a.block_n > b.block_n : a.block_n < b.block_n;
}

class FewRowsKernel : public GemmKernel {
 public:
  FewRowsKernel(const GemmNode& node, const FewRowsImage& row)
      : node_(node),
        row_(row),
        kernel_(KernelOf(node.driver, row.image, node.device)),
        arguments_(node, Decoding::ForTensorCores(node.spec)),
        blocks_(static_cast<unsigned>(CeilDivide(node.spec.N, row.block_n))) {}

  const char* Name() const override { return row_.image.name; }

  // For the rows they take, nothing was faster: ahead of every estimate, and fewer rows first.
  double Nanoseconds(int64_t M) const override { return M <= row_.most_rows ? row_.most_rows : kRefused; }

  void Launch(const GemmCall& call) const override {
    const auto M = static_cast<int32_t>(call.M);
    Arguments arguments;
    arguments.Add(call.x);
    arguments.Add(node_.weight);
    arguments_.Add(arguments, call, M);
    node_.driver.Launch(kernel_.Get(), blocks_, 1, row_.image.threads, row_.image.shared_bytes, call.stream,
                        arguments.Pointers());
  }

 private:
  const GemmNode& node_;
  const FewRowsImage& row_;
  LazyKernel& kernel_;
  NodeArguments arguments_;
  unsigned blocks_;
};

}  // namespace

void FewRowsKernels(const GemmNode& node, GemmKernels& kernels) {
  if (!ServesFewRows(node.spec) || !Serves(node.spec)) return;
  const int architecture = kFewRowsImages.ArchitectureFor(node.capability);
  const FewRowsImage* best[2] = {};  // for 8 rows and for 16
  for (const FewRowsImage& row : kFewRowsImages) {
    if (row.image.architecture != architecture || row.x_type != node.spec.x_type) continue;
    if (row.w_type != node.spec.weight_type || !node.Admits(row.image.name)) continue;
    const FewRowsImage*& slot = best[row.most_rows > 8];
    if (slot == nullptr || Better(row, *slot, node)) slot = &row;
  }
  for (const FewRowsImage* row : best) {
    if (row != nullptr) kernels.push_back(std::make_unique<FewRowsKernel>(node, *row));
  }
}

}  // namespace deftonnx
