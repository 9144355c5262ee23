#include "gemm_tensor_core.h"

#include <algorithm>
#include <limits>

#include "gemm_arguments.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr double kElementBytes = 250;  // a nanosecond, of W where its elements are loaded one by one

// How X and W meet on the tensor core.
struct Route {
  Operands operands;
  int terms;
};

Route ChooseRoute(const GemmSpec& spec) {
  const bool half_x = spec.x_type == ElementType::kFloat16;
  const int terms = spec.x_type == ElementType::kFloat ? 3 : 1;
  switch (spec.format) {
    case Format::kHalf: return {half_x ? Operands::kNative : Operands::kTf32, 1};
    // not with float16 X: see float16_weight.h
    case Format::kDeft16: return {terms == 1 ? Operands::kNative : Operands::kSplit, terms};
    case Format::kDeft8: return {Operands::kDeft8, terms};
    case Format::kFloat32:
    case Format::kDeft16q: break;
  }
  return {Operands::kTf32, 1};
}

bool LoaderFits(const GemmSpec& spec, const TensorCoreImage& row) {
  const bool even = spec.features % 16 == 0 && spec.K % 16 == 0 && spec.N % 16 == 0;
  switch (row.loader) {
    case Loader::kTma:
    case Loader::kAligned: return even && spec.block == 0;
    case Loader::kAlignedKept: return even && (spec.block == 0 || spec.block >= 8);
    case Loader::kElement: break;
  }
  return true;
}

// Loaders of the same rank compete by estimated time; a lower rank goes first.
int Rank(Loader loader) {
  if (loader == Loader::kTma) return 0;
  return loader == Loader::kElement ? 2 : 1;
}

class TensorCoreKernel : public GemmKernel {
 public:
  TensorCoreKernel(const GemmNode& node, const TensorCoreImage& row)
      : node_(node),
        row_(row),
        kernel_(KernelOf(node.driver, row.image, node.device)),
        arguments_(node, Decoding::ForTensorCores(node.spec)) {
    if (UsesMaps()) weight_.Encode(node.driver, node.weight, row.w_box, node.spec.N, node.spec.padded_K);
  }

  const char* Name() const override { return row_.image.name; }

  // Blocks that share a multiprocessor share its speed: fewer of them are faster each.
  double Nanoseconds(int64_t M) const override {
    const int64_t tiles = Tiles(M);
    if (tiles > std::numeric_limits<int32_t>::max()) return kRefused;
    const int64_t most = row_.blocks_per_multiprocessor;
    const int64_t waves = CeilDivide(tiles, node_.multiprocessors * most);
    const int64_t resident = std::min(most, CeilDivide(tiles, node_.multiprocessors));
    const double step_ns = row_.step_ns * resident / most;
    const double ns = waves * (row_.fixed_ns + CeilDivide(node_.spec.K, row_.block_k) * step_ns);
    if (row_.loader != Loader::kElement) return ns;
    const double bytes =
        static_cast<double>(node_.spec.N) * node_.spec.K * ElementBytes(node_.spec.weight_type);
    return std::max(ns, bytes / kElementBytes);
  }

  void Launch(const GemmCall& call) const override {
    const auto M = static_cast<int32_t>(call.M);
    Arguments arguments;
    Matrix x;
    if (UsesMaps()) {
      x.Encode(node_.driver, call.x, row_.x_box, call.M, node_.spec.features);
      x.Add(arguments);
      weight_.Add(arguments);
    } else {
      arguments.Add(call.x);
      arguments.Add(node_.weight);
    }
    arguments_.Add(arguments, call, M);
    static constexpr void* kUnused = nullptr;  // Triton's global and profiling scratch
    arguments.Add(kUnused);
    arguments.Add(kUnused);
    node_.driver.Launch(kernel_.Get(), static_cast<unsigned>(Tiles(call.M)), 1, row_.image.threads,
                        row_.image.shared_bytes, call.stream, arguments.Pointers());
  }

 private:
  // A tensor map and what Triton wants to know beside it.
  struct Matrix {
    TensorMap map;
    int32_t rows, columns;
    int64_t row_stride, column_stride = 1;

    void Encode(const CudaDriver& driver, const void* data, const Box& box, int64_t height, int64_t width) {
      rows = static_cast<int32_t>(height);
      columns = static_cast<int32_t>(width);
      row_stride = width;
      map = driver.EncodeMatrix(data, box.type, box.element_bytes, height, width, width, box.rows,
                                box.columns, box.swizzle);
    }
    void Add(Arguments& arguments) const {
      arguments.Add(map);
      arguments.Add(rows);
      arguments.Add(columns);
      arguments.Add(row_stride);
      arguments.Add(column_stride);
    }
  };

  bool UsesMaps() const { return row_.x_box.rows != 0; }
  int64_t Tiles(int64_t M) const {
    return CeilDivide(M, row_.block_m) * CeilDivide(node_.spec.N, row_.block_n);
  }

  const GemmNode& node_;
  const TensorCoreImage& row_;
  LazyKernel& kernel_;
  NodeArguments arguments_;
  Matrix weight_;
};

}  // namespace

void TensorCoreKernels(const GemmNode& node, GemmKernels& kernels) {
  const Route route = ChooseRoute(node.spec);
  const int architecture = kTensorCoreImages.ArchitectureFor(node.capability);
  std::vector<const TensorCoreImage*> found;
  int best = Rank(Loader::kElement);
  for (const TensorCoreImage& row : kTensorCoreImages) {
    if (row.image.architecture != architecture) continue;
    if (row.x_type != node.spec.x_type || row.w_type != node.spec.weight_type) continue;
    if (row.operands != route.operands || row.terms != route.terms || !LoaderFits(node.spec, row)) continue;
    const bool apart = NeedsSumsApart(node.spec, node.spec.K);
    if (!row.sums_apart && apart) continue;
    // where sums need not be apart there are faster kernels for what tensor maps can load
    const bool slower = row.sums_apart && row.operands == Operands::kNative && row.loader == Loader::kTma;
    if (slower && !apart && node.spec.kernel.empty()) continue;
    if (!node.Admits(row.image.name)) continue;
    found.push_back(&row);
    best = std::min(best, Rank(row.loader));
  }
  for (const TensorCoreImage* row : found) {
    if (Rank(row->loader) == best) kernels.push_back(std::make_unique<TensorCoreKernel>(node, *row));
  }
}

}  // namespace deftonnx
