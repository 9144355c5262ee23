// The one exported symbol: what SessionOptions.register_custom_ops_library calls.
#include <algorithm>
#include <exception>
#include <mutex>
#include <string>
#include <vector>

#include "attention_op.h"
#include "channels_last_op.h"
#include "choice_op.h"
#include "mlp_op.h"
#include "ort_abi.h"
#include "packed_op.h"
#include "pool_op.h"

namespace deftonnx {
namespace {

constexpr const char* kDomain = "ai.deftonnx";
constexpr const char* kChoiceDomain = "ai.deftonnx.choice";

// Marks session options that have the library. ONNX Runtime refuses a domain that comes twice.
constexpr const char* kRegistered = "deftonnx.library_registered";

// What sessions need not enter, which takes each of them time, is in the domains on demand alone, or left out
// of them: the operators of choice_op.h, and kernels for the CPU beside kernels for the GPU.
constexpr const char* kWithChoices = "deftonnx.choice_operators";
constexpr const char* kGpuAlone = "deftonnx.gpu_alone";

// With this ONNX Runtime may put nodes on the CPU that the GPU's memory does not suffice for.
constexpr const char* kShared = "session.resource_cuda_partitioning_settings";

std::vector<OrtCustomOp*> ChoiceOps() { return {ChoiceOp(), ConvChoiceOp()}; }

std::vector<OrtCustomOp*> ModelOps() {
  std::vector<OrtCustomOp*> ops = PackedOps();
  for (OrtCustomOp* op : PoolOps()) ops.push_back(op);
  for (OrtCustomOp* op : ChannelsLastOps()) ops.push_back(op);
  for (OrtCustomOp* op : AttentionOps()) ops.push_back(op);
  for (OrtCustomOp* op : MlpOps()) ops.push_back(op);
  return ops;
}

bool IsOnGpu(const OrtCustomOp* op) {
  return std::string(op->GetExecutionProviderType(op)) == "CUDAExecutionProvider";
}

bool HasSameTypes(const OrtCustomOp* a, const OrtCustomOp* b) {
  return std::string(a->GetName(a)) == b->GetName(b) && a->GetInputType(a, 0) == b->GetInputType(b, 0) &&
         a->GetOutputType(a, 0) == b->GetOutputType(b, 0);
}

// Without the kernels for the CPU, but where there is none for the GPU.
std::vector<OrtCustomOp*> GpuOps() {
  const std::vector<OrtCustomOp*> all = ModelOps();
  std::vector<OrtCustomOp*> ops;
  for (OrtCustomOp* op : all) {
    const auto replaces = [&](const OrtCustomOp* other) { return IsOnGpu(other) && HasSameTypes(op, other); };
    if (IsOnGpu(op) || std::none_of(all.begin(), all.end(), replaces)) ops.push_back(op);
  }
  return ops;
}

// A domain serves all sessions, and is never released: nothing says when the last session goes.
OrtStatus* Register(const Ort& ort, OrtSessionOptions* options) {
  static std::mutex mutex;
  static OrtCustomOpDomain *everywhere = nullptr, *on_gpu = nullptr, *choices = nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  const auto add = [&](OrtCustomOpDomain*& domain, const char* name, std::vector<OrtCustomOp*> (*ops)()) {
    OrtStatus* status = domain == nullptr ? ort.CreateDomain(name, ops(), &domain) : nullptr;
    return status == nullptr ? ort.AddDomain(options, domain) : status;
  };
  if (ort.HasConfigEntry(options, kRegistered)) return nullptr;
  const bool gpu = ort.HasConfigEntry(options, kGpuAlone) && !ort.HasConfigEntry(options, kShared);
  if (OrtStatus* status = gpu ? add(on_gpu, kDomain, GpuOps) : add(everywhere, kDomain, ModelOps))
    return status;
  if (ort.HasConfigEntry(options, kWithChoices)) {
    if (OrtStatus* status = add(choices, kChoiceDomain, ChoiceOps)) return status;
  }
  ort.AddConfigEntry(options, kRegistered, "1");
  return nullptr;
}

}  // namespace
}  // namespace deftonnx

extern "C" __attribute__((visibility("default"))) deftonnx::OrtStatus* RegisterCustomOps(
    deftonnx::OrtSessionOptions* options, const deftonnx::OrtApiBase* base) {
  const deftonnx::OrtApi* api = base->GetApi(deftonnx::kApiVersion);
  if (api == nullptr) {
    // too old to make a status with: ask for the oldest API, whose first slot is CreateStatus
    return deftonnx::Ort(base->GetApi(1))
        .CreateStatus(deftonnx::ErrorCode::kFail, "libdeftonnx_ops needs ONNX Runtime 1.24 or newer");
  }
  const deftonnx::Ort ort(api);
  try {
    return deftonnx::Register(ort, options);
  } catch (const std::exception& error) {
    return ort.CreateStatus(deftonnx::ErrorCode::kFail, error.what());
  }
}
