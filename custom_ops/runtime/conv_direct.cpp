#include "conv_direct.h"

#include <algorithm>

#include "conv_arguments.h"
#include "error.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int64_t kPixels = 4;  // of a thread, as in the kernel
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();

struct Run {
  int32_t channel, row, column, count;
};

// DirectParameters of the kernel.
struct DirectParameters {
  const void *x, *weight, *scale, *bias, *runs, *residual;
  void* y;
  int64_t pixels;
  int32_t N, outputs, run_count, channels, in_rows, in_columns, out_rows, out_columns;
  int32_t row_stride, column_stride, row_start, column_start, row_dilation, column_dilation;
  int32_t pool;
  EpilogueArguments epilogue;
};

std::vector<float> Transposed(const ConvNode& node) {
  const std::vector<float>& weight = node.Weight();
  std::vector<float> columns(weight.size());  // (K, N)
  for (int64_t n = 0; n < node.spec.N; ++n) {
    for (int64_t k = 0; k < node.spec.K; ++k) columns[k * node.spec.N + n] = weight[n * node.spec.K + k];
  }
  return columns;
}

// W, and where its features lie in X.
struct Operands {
  DeviceBuffer weight, runs;
  int64_t run_count;  // of a group
};

std::vector<Run> Runs(const ConvNode& node) {
  std::vector<Run> runs;
  for (int64_t g = 0; g < node.spec.group; ++g) {
    for (const FilterRun& run : FilterRuns(node.spec, node.kept.data(), g)) {
      runs.push_back({static_cast<int32_t>(run.channel), static_cast<int32_t>(run.row),
                      static_cast<int32_t>(run.column), static_cast<int32_t>(run.count)});
    }
  }
  return runs;
}

Operands MakeOperands(const ConvNode& node) {
  const std::vector<Run> runs = Runs(node);
  auto [weight, runs_there] = DeviceBuffer::Together(node.driver, Transposed(node), runs);
  return {std::move(weight), std::move(runs_there), static_cast<int64_t>(runs.size()) / node.spec.group};
}

class DirectConv : public ConvKernel {
 public:
  DirectConv(const ConvNode& node, const ConvDirectImage& row)
      : node_(node),
        row_(row),
        kernel_(KernelOf(node.driver, row.image, node.device)),
        operands_(MakeOperands(node)) {}

  const char* Name() const override { return row_.image.name; }

  double Nanoseconds(const ConvShape& shape) override {
    const double products = 1.0 * shape.Pixels() * node_.spec.N * node_.spec.K;
    return 5000 + products / (20.0 * node_.multiprocessors);
  }

  void Launch(const ConvCall& call) override {
    const ConvSpec& s = node_.spec;
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    // a thread's pixels are neighbours, or a square that is pooled: rows and columns left over have none
    const int64_t squares =
        call.shape.batch * (call.shape.out_rows / s.pool) * (call.shape.out_columns / s.pool);
    const int64_t pixels = squares * s.pool * s.pool;
    const DirectParameters parameters{call.x,
                                      operands_.weight.data(),
                                      node_.packed_scale,
                                      node_.bias,
                                      operands_.runs.data(),
                                      call.residual,
                                      call.y,
                                      pixels,
                                      narrow(s.N),
                                      narrow(s.GroupOutputs()),
                                      narrow(operands_.run_count),
                                      narrow(s.channels),
                                      narrow(call.shape.in_rows),
                                      narrow(call.shape.in_columns),
                                      narrow(call.shape.out_rows),
                                      narrow(call.shape.out_columns),
                                      narrow(s.rows.stride),
                                      narrow(s.columns.stride),
                                      narrow(-s.rows.pad_begin),
                                      narrow(-s.columns.pad_begin),
                                      narrow(s.rows.dilation),
                                      narrow(s.columns.dilation),
                                      narrow(s.pool),
                                      EpilogueArguments(s)};
    const int64_t items = (pixels + kPixels - 1) / kPixels * s.N;
    const int64_t blocks = (items + row_.image.threads - 1) / row_.image.threads;
    if (blocks > kMostBlocks) Refuse(s, "Y is too large");
    void* arguments[] = {const_cast<DirectParameters*>(&parameters)};
    node_.driver.Launch(kernel_.Get(), static_cast<unsigned>(blocks), 1, row_.image.threads, 0, call.stream,
                        arguments, CanStartEarly(row_.image.architecture));
  }

 private:
  const ConvNode& node_;
  const ConvDirectImage& row_;
  LazyKernel& kernel_;
  Operands operands_;
};

}  // namespace

// Where a tensor-core kernel of ours serves every shape, this one is not needed.
void DirectConvKernels(const ConvNode& node, ConvKernels& kernels) {
  const bool served =
      std::any_of(kernels.begin(), kernels.end(), [](auto& k) { return k->ServesEveryShape(); });
  if (served && node.spec.kernel.empty()) return;
  const int architecture = kConvDirectImages.ArchitectureFor(node.capability);
  for (const ConvDirectImage& row : kConvDirectImages) {
    if (row.image.architecture != architecture || row.x_type != node.spec.x_type) continue;
    if (node.Admits(row.image.name)) kernels.push_back(std::make_unique<DirectConv>(node, row));
  }
}

}  // namespace deftonnx
