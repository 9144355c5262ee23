// The one exported symbol: what SessionOptions.register_custom_ops_library calls.
#include <exception>
#include <mutex>
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

// Marks session options that have the library. ONNX Runtime refuses a domain that comes twice.
constexpr const char* kRegistered = "deftonnx.library_registered";

// One domain serves all sessions, and is never released: nothing says when the last session goes.
OrtStatus* Register(const Ort& ort, OrtSessionOptions* options) {
  static std::mutex mutex;
  static OrtCustomOpDomain* domain = nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  if (ort.HasConfigEntry(options, kRegistered)) return nullptr;
  if (domain == nullptr) {
    std::vector<OrtCustomOp*> ops = PackedOps();
    for (OrtCustomOp* op : PoolOps()) ops.push_back(op);
    for (OrtCustomOp* op : ChannelsLastOps()) ops.push_back(op);
    for (OrtCustomOp* op : AttentionOps()) ops.push_back(op);
    for (OrtCustomOp* op : MlpOps()) ops.push_back(op);
    ops.push_back(ChoiceOp());
    ops.push_back(ConvChoiceOp());
    if (OrtStatus* status = ort.CreateDomain(kDomain, ops, &domain)) return status;
  }
  if (OrtStatus* status = ort.AddDomain(options, domain)) return status;
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
