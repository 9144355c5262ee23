#include "conv_depthwise.h"

#include <algorithm>

#include "conv_arguments.h"
#include "error.h"
#include "gemm_arguments.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int64_t kPixels = 4;  // of a thread, as in the kernel
constexpr int64_t kVector = 8;  // channels of 16 bytes
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();
constexpr double kBytes = 2500;  // of device memory, a nanosecond

// Parameters of the kernel.
struct Parameters {
  const void *x, *weight, *scale, *bias, *residual;
  void* y;
  int64_t items;
  int32_t vectors, strips, in_rows, in_columns, out_rows, out_columns, kernel_rows, kernel_columns;
  int32_t row_stride, column_stride, row_start, column_start, row_dilation, column_dilation;
  EpilogueArguments epilogue;
};

struct Operands {
  DeviceBuffer weight, scale;  // (taps, channels), (channels,)
};

Operands MakeOperands(const ConvNode& node) {
  const HostWeight16& weight = RoundedWeight16(node);
  std::vector<uint16_t> values(weight.values.size());
  const int64_t taps = node.spec.K, channels = node.spec.N;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) values[t * channels + c] = weight.values[c * taps + t];
  }
  auto [values_there, scale_there] = DeviceBuffer::Together(node.driver, values, weight.scale);
  return {std::move(values_there), std::move(scale_there)};
}

class DepthwiseConv : public ConvKernel {
 public:
  DepthwiseConv(const ConvNode& node, const ConvDepthwiseImage& row)
      : node_(node),
        row_(row),
        kernel_(KernelOf(node.driver, row.image, node.device)),
        operands_(MakeOperands(node)) {}

  const char* Name() const override { return row_.image.name; }

  double Nanoseconds(const ConvShape& shape) override {
    const double inputs = 1.0 * shape.batch * shape.in_rows * shape.in_columns;
    const double elements = (inputs + shape.Pixels() * (node_.spec.has_residual ? 2.0 : 1.0)) * node_.spec.N;
    const double products = 1.0 * shape.Pixels() * node_.spec.N * node_.spec.K;
    return 3000 + std::max(2 * elements / kBytes, products / (60.0 * node_.multiprocessors));
  }

  void Launch(const ConvCall& call) override {
    const ConvSpec& s = node_.spec;
    const ConvShape& shape = call.shape;
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    const int64_t vectors = s.N / kVector, strips = CeilDivide(shape.out_columns, kPixels);
    const Parameters parameters{call.x,
                                operands_.weight.data(),
                                operands_.scale.data(),
                                node_.bias,
                                call.residual,
                                call.y,
                                vectors * strips * shape.out_rows * shape.batch,
                                narrow(vectors),
                                narrow(strips),
                                narrow(shape.in_rows),
                                narrow(shape.in_columns),
                                narrow(shape.out_rows),
                                narrow(shape.out_columns),
                                narrow(s.rows.kernel),
                                narrow(s.columns.kernel),
                                narrow(s.rows.stride),
                                narrow(s.columns.stride),
                                narrow(-s.rows.pad_begin),
                                narrow(-s.columns.pad_begin),
                                narrow(s.rows.dilation),
                                narrow(s.columns.dilation),
                                EpilogueArguments(s)};
    const int64_t blocks = CeilDivide(parameters.items, row_.image.threads);
    if (blocks > kMostBlocks) Refuse(s, "Y is too large");
    void* arguments[] = {const_cast<Parameters*>(&parameters)};
    node_.driver.Launch(kernel_.Get(), static_cast<unsigned>(blocks), 1, row_.image.threads, 0, call.stream,
                        arguments, CanStartEarly(row_.image.architecture));
  }

 private:
  const ConvNode& node_;
  const ConvDepthwiseImage& row_;
  LazyKernel& kernel_;
  Operands operands_;
};

bool Serves(const ConvSpec& spec) {
  if (spec.x_type == ElementType::kFloat || spec.y_type != spec.x_type) return false;
  if (spec.block != 0 || spec.pool != 1) return false;
  return spec.group == spec.channels && spec.N == spec.channels && spec.N % kVector == 0;
}

bool MadeFor(const ConvDepthwiseImage& row, const Axis& columns) {
  if (row.columns == 0) return true;
  return row.columns == columns.kernel && row.stride == columns.stride && columns.dilation == 1;
}

}  // namespace

// Of the kernels made for such a filter and the one for any, the first serves.
void DepthwiseConvKernels(const ConvNode& node, ConvKernels& kernels) {
  if (!Serves(node.spec)) return;
  const int architecture = kConvDepthwiseImages.ArchitectureFor(node.capability);
  for (const ConvDepthwiseImage& row : kConvDepthwiseImages) {
    if (row.image.architecture != architecture || row.x_type != node.spec.x_type) continue;
    if (!MadeFor(row, node.spec.columns) || !node.Admits(row.image.name)) continue;
    kernels.push_back(std::make_unique<DepthwiseConv>(node, row));
    return;
  }
}

}  // namespace deftonnx
