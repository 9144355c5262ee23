#include "cudnn_conv_graph.h"

#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "cudnn_attributes.h"

namespace deftonnx::cudnn {
namespace {

enum PointwiseMode : int {
  kAdd = 0,
  kMultiply = 1,
  kRelu = 100,
  kTanh = 101,
  kSigmoid = 102,
  kGelu = 104,
  kSwish = 106,
  kGeluTanh = 107,
};

constexpr int kCrossCorrelation = 1;

struct Sizes {
  int64_t n, c, h, w;
};

// Builds the graph, operation by operation.
class Builder {
 public:
  Builder(const Library& library, DataType type) : library_(library), type_(type) {}

  // Channels last; a virtual tensor is a float32 value between two operations.
  const Descriptor& Tensor(int64_t id, const Sizes& s, DataType type, bool is_virtual = false) {
    Descriptor& tensor = Make(kTensor);
    tensor.SetEnum(kTensorType, kDataTypeValue, type)
        .SetInts(kTensorSizes, {s.n, s.c, s.h, s.w})
        .SetInts(kTensorStrides, {s.h * s.w * s.c, 1, s.w * s.c, s.c})
        .SetInt(kTensorId, id)
        .SetInt(kTensorAlignment, 16);
    if (is_virtual) tensor.Set(kTensorVirtual, kBooleanValue, 1, &is_virtual);
    tensor.Finalize();
    return tensor;
  }

  const Descriptor& Intermediate(const Sizes& s) { return Tensor(next_++, s, kFloat, true); }

  void Convolve(const ConvSpec& spec, const Descriptor& x, const Descriptor& w, const Descriptor& y) {
    const Axis &r = spec.rows, &c = spec.columns;
    Descriptor& window = Make(kConvolution);
    window.SetEnum(kConvolutionMathType, kDataTypeValue, kFloat)
        .SetEnum(kConvolutionMode, kConvolutionModeValue, kCrossCorrelation)
        .SetInt(kConvolutionAxes, 2)
        .SetInts(kConvolutionDilations, {r.dilation, c.dilation})
        .SetInts(kConvolutionStrides, {r.stride, c.stride})
        .SetInts(kConvolutionPadBegin, {r.pad_begin, c.pad_begin})
        .SetInts(kConvolutionPadEnd, {r.pad_end, c.pad_end})
        .Finalize();
    const float one = 1, zero = 0;
    Operation(kOperationConvolution)
        .SetDescriptor(kForwardConvolution, window)
        .SetDescriptor(kForwardX, x)
        .SetDescriptor(kForwardW, w)
        .SetDescriptor(kForwardY, y)
        .Set(kForwardAlpha, kFloatValue, 1, &one)
        .Set(kForwardBeta, kFloatValue, 1, &zero)
        .Finalize();
  }

  void Pointwise(PointwiseMode mode, const Descriptor& x, const Descriptor* b, const Descriptor& y,
                 const Activation* activation = nullptr) {
    Descriptor& operation = Make(kPointwise);
    operation.SetEnum(kPointwiseMode, kPointwiseModeValue, mode)
        .SetEnum(kPointwiseMathType, kDataTypeValue, kFloat);
    if (activation != nullptr && mode == kRelu) SetClips(operation, *activation);
    operation.Finalize();
    Descriptor& node = Operation(kOperationPointwise);
    node.SetDescriptor(kPointwiseOperator, operation)
        .SetDescriptor(kPointwiseX, x)
        .SetDescriptor(kPointwiseY, y);
    if (b != nullptr) node.SetDescriptor(kPointwiseB, *b);
    node.Finalize();
  }

  ConvGraph Graph(void* handle) {
    Descriptor graph(library_, kOperationGraph);
    graph.Set(kGraphHandle, kHandleValue, 1, &handle)
        .Set(kGraphOperations, kDescriptorValue, static_cast<int64_t>(operations_.size()), operations_.data())
        .Finalize();
    return {std::move(made_), std::move(graph)};
  }

  DataType type() const { return type_; }

 private:
  Descriptor& Make(DescriptorType type) {
    made_.push_back(std::make_unique<Descriptor>(library_, type));
    return *made_.back();
  }
  Descriptor& Operation(DescriptorType type) {
    Descriptor& operation = Make(type);
    operations_.push_back(operation.value());
    return operation;
  }
  static void SetClips(Descriptor& operation, const Activation& a) {
    if (a.curve == Activation::kSlopes) {
      const double slope = a.slope;
      operation.Set(kPointwiseLowerSlope, kDoubleValue, 1, &slope);
      return;
    }
    const double low = a.low, high = a.high;
    operation.Set(kPointwiseLowerClip, kDoubleValue, 1, &low);
    if (std::isfinite(high)) operation.Set(kPointwiseUpperClip, kDoubleValue, 1, &high);
  }

  const Library& library_;
  DataType type_;
  int64_t next_ = kFirstVirtual;
  std::vector<std::unique_ptr<Descriptor>> made_;
  std::vector<void*> operations_;
};

bool IsIdentity(const Activation& a) {
  return a.curve == Activation::kLinear && !a.gated && std::isinf(a.low) && std::isinf(a.high) &&
         a.slope == 1;
}

// cuDNN's name of the activation; -1 if it has none.
int ModeOf(const Activation& a) {
  switch (a.curve) {
    case Activation::kLinear:
      return a.gated || a.slope != 1 || a.offset != 0 || !std::isfinite(a.low) ? -1 : kRelu;
    case Activation::kSlopes: return a.slope >= 0 && a.slope < 1 ? kRelu : -1;
    case Activation::kErf: return kGelu;
    case Activation::kSigmoid: break;
  }
  if (a.gated) return a.high == 0 ? kSwish : kGeluTanh;
  return a.slope == 1 ? kSigmoid : kTanh;
}

}  // namespace

bool Knows(const Activation& activation) { return IsIdentity(activation) || ModeOf(activation) >= 0; }

ConvGraph BuildConvGraph(const Library& library, void* handle, const ConvSpec& spec, const ConvShape& shape,
                         bool scaled) {
  Builder builder(library, spec.x_type == ElementType::kFloat16 ? kHalf : kBfloat16);
  const Sizes out{shape.batch, spec.N, shape.out_rows, shape.out_columns};
  const Sizes channel{1, spec.N, 1, 1};
  const Descriptor& x =
      builder.Tensor(kX, {shape.batch, spec.channels, shape.in_rows, shape.in_columns}, builder.type());
  const Descriptor& w = builder.Tensor(
      kW, {spec.N, spec.GroupChannels(), spec.rows.kernel, spec.columns.kernel}, builder.type());
  const Descriptor& y = builder.Tensor(kY, out, builder.type());
  const bool identity = IsIdentity(spec.activation);
  const Descriptor* value = &builder.Intermediate(out);
  builder.Convolve(spec, x, w, *value);
  const auto step = [&](PointwiseMode mode, const Descriptor& operand, bool last) {
    const Descriptor& next = last ? y : builder.Intermediate(out);
    builder.Pointwise(mode, *value, &operand, next);
    value = &next;
  };
  if (scaled) step(kMultiply, builder.Tensor(kScale, channel, kFloat), false);
  step(kAdd, builder.Tensor(kBias, channel, kFloat), identity && !spec.has_residual);
  if (spec.has_residual) step(kAdd, builder.Tensor(kResidual, out, builder.type()), identity);
  if (!identity) {
    builder.Pointwise(static_cast<PointwiseMode>(ModeOf(spec.activation)), *value, nullptr, y,
                      &spec.activation);
  }
  return builder.Graph(handle);
}

}  // namespace deftonnx::cudnn
