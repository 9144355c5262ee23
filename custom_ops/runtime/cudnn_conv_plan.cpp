#include "cudnn_conv_plan.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "cudnn_attributes.h"
#include "cudnn_conv_graph.h"

namespace deftonnx::cudnn {
namespace {

// Numerical notes of engines that are not wanted.
enum Note : int { kDownConverts = 1, kReducedPrecision = 2, kFft = 3, kNondeterministic = 4, kWinograd = 5 };

constexpr int64_t kMostConfigs = 32;
constexpr size_t kMostThreads = 8;
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

// Adds up to `most` plans of the configurations that a heuristic returns and cuDNN can make plans of; returns
// whether there was want of memory.
bool AddPlans(const Library& library, void* handle, const Descriptor& graph, int mode, size_t most,
              std::vector<Descriptor>& plans) {
  const size_t end = plans.size() + most;
  std::vector<Descriptor> configs;
  try {
    configs = Configs(library, graph, mode);
  } catch (const Error& error) {
    return error.passes;
  }
  bool wanting = false;
  for (const Descriptor& config : configs) {
    if (plans.size() == end) break;
    try {
      if (!Acceptable(library, config)) continue;
      Descriptor plan(library, kPlan);
      plan.Set(kPlanHandle, kHandleValue, 1, &handle).SetDescriptor(kPlanConfig, config).Finalize();
      plans.push_back(std::move(plan));
    } catch (const Error& error) {
      wanting = wanting || error.passes;  // the next one
    }
  }
  return wanting;
}

// `maker` is the calling thread's handle, `runner` the one that the plans run with. Null where there is no
// plan for want of memory: there may be one another time.
ConvPlans MakePlans(const Library& library, void* maker, void* runner, const ConvQuestion& asked) {
  std::vector<Descriptor> plans;
  bool wanting = false;
  try {
    const ConvGraph built = BuildConvGraph(library, maker, asked.spec, asked.shape, asked.scaled);
    for (const Heuristic& heuristic : kAsked) {
      if ((heuristic.last_resort || !asked.guess_more) && !plans.empty()) break;
      const size_t most = asked.guess_more ? heuristic.plans : 1;
      wanting = AddPlans(library, maker, built.graph, heuristic.mode, most, plans) || wanting;
    }
  } catch (const Error& error) {
    wanting = error.passes;  // else cuDNN does not know such a graph
  }
  if (plans.empty() && wanting) return nullptr;
  std::vector<ConvPlan> made;
  for (Descriptor& plan : plans) {
    made.emplace_back(library, runner, std::move(plan), asked.scaled, asked.spec.has_residual);
    if (made.back().WorkspaceBytes() > kMostWorkspace) made.pop_back();
  }
  return std::make_shared<const std::vector<ConvPlan>>(std::move(made));
}

// The plans of all questions, in the same order. Null for what could not be asked, as for want of memory.
std::vector<ConvPlans> MakeAll(const Library& library, const CudaDriver& driver, CUdevice device,
                               const std::vector<const ConvQuestion*>& questions) {
  std::vector<ConvPlans> made(questions.size());
  const CUcontext context = driver.CurrentContext();
  std::atomic<size_t> next{0};
  const auto work = [&](size_t number) {
    for (size_t i = next++; i < made.size(); i = next++) {
      try {
        driver.SetContext(context);
        made[i] =
            MakePlans(library, library.Handle(device, 1 + number), library.Handle(device), *questions[i]);
      } catch (const std::exception&) {
        // other kernels serve, this time
      }
    }
  };
  const size_t threads =
      std::min<size_t>({kMostThreads, questions.size(), std::max(1u, std::thread::hardware_concurrency())});
  std::vector<std::thread> others;
  others.reserve(threads);
  try {
    for (size_t number = 1; number < threads; ++number) others.emplace_back(work, number);
  } catch (const std::system_error&) {
    // as many as there are
  }
  work(0);
  for (std::thread& thread : others) thread.join();
  return made;
}

std::string Key(CUdevice device, const ConvQuestion& question) {
  return std::to_string(device) + (question.scaled ? " scaled " : " ") +
         TimingKey(question.spec, question.shape);
}

struct KnownPlans {
  std::mutex mutex;
  std::map<std::string, ConvPlans> plans;
};

KnownPlans& Known() {
  static auto* known = new KnownPlans;
  return *known;
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

ConvPlans FindConvPlans(const Library& library, const CudaDriver& driver, CUdevice device,
                        const ConvQuestion& question) {
  MakeConvPlans(library, driver, device, {question});
  std::lock_guard<std::mutex> lock(Known().mutex);
  const auto found = Known().plans.find(Key(device, question));
  return found == Known().plans.end() ? nullptr : found->second;
}

void MakeConvPlans(const Library& library, const CudaDriver& driver, CUdevice device,
                   const std::vector<ConvQuestion>& questions) {
  std::lock_guard<std::mutex> lock(Known().mutex);
  std::map<std::string, ConvPlans>& known = Known().plans;
  std::map<std::string, const ConvQuestion*> missing;
  for (const ConvQuestion& question : questions) {
    const std::string key = Key(device, question);
    if (known.count(key) == 0) missing.emplace(key, &question);
  }
  std::vector<const ConvQuestion*> asked;
  for (const auto& [key, question] : missing) asked.push_back(question);
  const std::vector<ConvPlans> made = MakeAll(library, driver, device, asked);
  size_t i = 0;
  for (const auto& [key, question] : missing) {
    if (made[i] != nullptr) known[key] = made[i];
    ++i;
  }
}

}  // namespace deftonnx::cudnn
