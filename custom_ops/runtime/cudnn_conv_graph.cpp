#include "cudnn_conv_graph.h"

#include <cmath>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

namespace deftonnx::cudnn {
namespace {

// Attribute numbers, of cuDNN's cudnnBackendAttributeName_t.
enum Attribute : int {
  kPointwiseMode = 0,
  kPointwiseMathType = 1,
  kPointwiseLowerClip = 3,
  kPointwiseUpperClip = 4,
  kPointwiseLowerSlope = 5,
  kPointwiseSwishBeta = 8,
  kConvolutionMathType = 100,
  kConvolutionMode = 101,
  kConvolutionDilations = 102,
  kConvolutionStrides = 103,
  kConvolutionPadEnd = 104,
  kConvolutionPadBegin = 105,
  kConvolutionAxes = 106,
  kHeuristicMode = 200,
  kHeuristicGraph = 201,
  kHeuristicResults = 202,
  kConfigEngine = 300,
  kPlanHandle = 400,
  kPlanConfig = 401,
  kPlanWorkspace = 402,
  kForwardAlpha = 700,
  kForwardBeta = 701,
  kForwardConvolution = 702,
  kForwardW = 703,
  kForwardX = 704,
  kForwardY = 705,
  kPointwiseOperator = 750,
  kPointwiseX = 751,
  kPointwiseB = 752,
  kPointwiseY = 753,
  kGraphHandle = 800,
  kGraphOperations = 801,
  kTensorAlignment = 900,
  kTensorType = 901,
  kTensorSizes = 902,
  kTensorStrides = 903,
  kTensorId = 906,
  kTensorVirtual = 907,
  kPackIds = 1000,
  kPackPointers = 1001,
  kPackWorkspace = 1003,
  kEngineNotes = 1303,
};

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

// Numerical notes of engines that are not wanted.
enum Note : int { kDownConverts = 1, kReducedPrecision = 2, kFft = 3, kNondeterministic = 4, kWinograd = 5 };

constexpr int kCrossCorrelation = 1;
constexpr int64_t kMostConfigs = 32;
constexpr size_t kMostWorkspace = size_t{256} << 20;

// cuDNN's heuristics: A, B and the fallback, with how many plans to take of each.
struct Heuristic {
  int mode;
  size_t plans;
  bool last_resort;
};
constexpr Heuristic kAsked[] = {{3, 4, false}, {1, 2, false}, {2, 1, true}};

enum TensorId : int64_t { kX = 1, kW, kScale, kBias, kResidual, kY, kFirstVirtual };

struct Sizes {
  int64_t n, c, h, w;
};

// Builds the graph; descriptors stay alive until it is final.
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

  Descriptor Graph(void* handle) {
    Descriptor graph(library_, kOperationGraph);
    graph.Set(kGraphHandle, kHandleValue, 1, &handle)
        .Set(kGraphOperations, kDescriptorValue, static_cast<int64_t>(operations_.size()), operations_.data())
        .Finalize();
    return graph;
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

Descriptor BuildGraph(void* handle, const ConvSpec& spec, const ConvShape& shape, bool scaled,
                      Builder& builder) {
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

// Whether the engine of a configuration computes the same bits every time, at full precision.
bool Acceptable(const Library& library, const Descriptor& config) {
  Descriptor engine(library, kEngine);
  void* value = engine.value();
  config.Get(kConfigEngine, kDescriptorValue, 1, &value);
  int notes[16];
  const int64_t count = engine.Get(kEngineNotes, kNumericalNoteValue, 16, notes);
  for (int64_t i = 0; i < count; ++i) {
    if (notes[i] >= kDownConverts) return false;  // every later note tells of another algorithm or precision
  }
  return true;
}

std::vector<Descriptor> Configs(const Library& library, const Descriptor& graph, int mode) {
  Descriptor heuristics(library, kHeuristics);
  heuristics.SetDescriptor(kHeuristicGraph, graph)
      .SetEnum(kHeuristicMode, kHeuristicModeValue, mode)
      .Finalize();
  std::vector<Descriptor> configs;
  std::vector<void*> values;
  for (int64_t i = 0; i < kMostConfigs; ++i) {
    configs.emplace_back(library, kEngineConfig);
    values.push_back(configs.back().value());
  }
  const int64_t count = heuristics.Get(kHeuristicResults, kDescriptorValue, kMostConfigs, values.data());
  while (static_cast<int64_t>(configs.size()) > count) configs.pop_back();
  return configs;
}

// Adds up to `most` plans of the configurations that a heuristic returns and cuDNN can make plans of.
void AddPlans(const Library& library, void* handle, const Descriptor& graph, int mode, size_t most,
              std::vector<Descriptor>& plans) {
  const size_t end = plans.size() + most;
  std::vector<Descriptor> configs;
  try {
    configs = Configs(library, graph, mode);
  } catch (const Error&) {
    return;
  }
  for (const Descriptor& config : configs) {
    if (plans.size() == end) return;
    try {
      if (!Acceptable(library, config)) continue;
      Descriptor plan(library, kPlan);
      plan.Set(kPlanHandle, kHandleValue, 1, &handle).SetDescriptor(kPlanConfig, config).Finalize();
      plans.push_back(std::move(plan));
    } catch (const Error&) {
      // the next one
    }
  }
}

std::vector<ConvPlan> MakePlans(const Library& library, void* handle, const ConvSpec& spec,
                                const ConvShape& shape, bool scaled) {
  std::vector<Descriptor> plans;
  try {
    Builder builder(library, spec.x_type == ElementType::kFloat16 ? kHalf : kBfloat16);
    const Descriptor graph = BuildGraph(handle, spec, shape, scaled, builder);
    for (const Heuristic& heuristic : kAsked) {
      if (heuristic.last_resort && !plans.empty()) break;
      AddPlans(library, handle, graph, heuristic.mode, heuristic.plans, plans);
    }
  } catch (const Error&) {
    // cuDNN does not know such a graph
  }
  std::vector<ConvPlan> made;
  for (Descriptor& plan : plans) {
    made.emplace_back(library, handle, std::move(plan), scaled, spec.has_residual);
    if (made.back().WorkspaceBytes() > kMostWorkspace) made.pop_back();
  }
  return made;
}

}  // namespace

bool Knows(const Activation& activation) { return IsIdentity(activation) || ModeOf(activation) >= 0; }

ConvPlan::ConvPlan(const Library& library, void* handle, Descriptor plan, bool scaled, bool residual)
    : library_(library), handle_(handle), plan_(std::move(plan)), scaled_(scaled), residual_(residual) {
  plan_.Get(kPlanWorkspace, kInt64Value, 1, &workspace_);
}

void ConvPlan::Run(const ConvPointers& p, CUstream stream) const {
  std::vector<int64_t> ids = {kX, kW, kBias, kY};
  std::vector<const void*> pointers = {p.x, p.weight, p.bias, p.y};
  if (scaled_) ids.push_back(kScale), pointers.push_back(p.scale);
  if (residual_) ids.push_back(kResidual), pointers.push_back(p.residual);
  const auto count = static_cast<int64_t>(ids.size());
  Descriptor pack(library_, kVariantPack);
  pack.SetInts(kPackIds, ids)
      .Set(kPackPointers, kPointerValue, count, pointers.data())
      .Set(kPackWorkspace, kPointerValue, 1, &p.workspace)
      .Finalize();
  Execute(library_, handle_, plan_, pack, stream);
}

ConvPlans FindConvPlans(const Library& library, void* handle, const ConvSpec& spec, const ConvShape& shape,
                        bool scaled) {
  std::ostringstream key;
  key << handle << ' ' << scaled << ' ' << TimingKey(spec, shape);
  static std::mutex mutex;
  static auto* known = new std::map<std::string, std::weak_ptr<const std::vector<ConvPlan>>>;
  std::lock_guard<std::mutex> lock(mutex);
  std::weak_ptr<const std::vector<ConvPlan>>& entry = (*known)[key.str()];
  ConvPlans plans = entry.lock();
  if (plans == nullptr) {
    plans = std::make_shared<const std::vector<ConvPlan>>(MakePlans(library, handle, spec, shape, scaled));
    entry = plans;
  }
  return plans;
}

}  // namespace deftonnx::cudnn
