#include "cudnn_conv_plan.h"

#include <map>
#include <mutex>
#include <sstream>
#include <string>

#include "cudnn_attributes.h"
#include "cudnn_conv_graph.h"

namespace deftonnx::cudnn {
namespace {

// Numerical notes of engines that are not wanted.
enum Note : int { kDownConverts = 1, kReducedPrecision = 2, kFft = 3, kNondeterministic = 4, kWinograd = 5 };

constexpr int64_t kMostConfigs = 32;
constexpr size_t kMostWorkspace = size_t{256} << 20;

// cuDNN's heuristics: A, B and the fallback, with how many plans to take of each.
struct Heuristic {
  int mode;
  size_t plans;
  bool last_resort;
};
constexpr Heuristic kAsked[] = {{3, 2, false}, {1, 1, false}, {2, 1, true}};

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

std::vector<ConvPlan> MakePlans(const Library& library, CUdevice device, const ConvSpec& spec,
                                const ConvShape& shape, bool scaled, bool guess_more) {
  std::vector<Descriptor> plans;
  void* handle = nullptr;
  try {
    handle = library.Handle(device);
    const ConvGraph built = BuildConvGraph(library, handle, spec, shape, scaled);
    for (const Heuristic& heuristic : kAsked) {
      if ((heuristic.last_resort || !guess_more) && !plans.empty()) break;
      AddPlans(library, handle, built.graph, heuristic.mode, guess_more ? heuristic.plans : 1, plans);
    }
  } catch (const Error&) {
    // cuDNN does not know such a graph, or cannot use the device
  }
  std::vector<ConvPlan> made;
  for (Descriptor& plan : plans) {
    made.emplace_back(library, handle, std::move(plan), scaled, spec.has_residual);
    if (made.back().WorkspaceBytes() > kMostWorkspace) made.pop_back();
  }
  return made;
}

}  // namespace

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

ConvPlans FindConvPlans(const Library& library, CUdevice device, const ConvSpec& spec, const ConvShape& shape,
                        bool scaled, bool guess_more) {
  std::ostringstream key;
  key << device << ' ' << scaled << ' ' << TimingKey(spec, shape);
  static std::mutex mutex;
  static auto* known = new std::map<std::string, ConvPlans>;
  std::lock_guard<std::mutex> lock(mutex);
  ConvPlans& plans = (*known)[key.str()];
  if (plans == nullptr) {
    plans = std::make_shared<const std::vector<ConvPlan>>(
        MakePlans(library, device, spec, shape, scaled, guess_more));
  }
  return plans;
}

}  // namespace deftonnx::cudnn
