// The one exported symbol: what SessionOptions.register_custom_ops_library calls.
#include <memory>
#include <mutex>
#include <vector>

#include "gemm_op.h"
#include "ort_abi.h"

namespace deftonnx {
namespace {

constexpr const char* kDomain = "ai.deftonnx";

// Sessions refer to the domain as long as they live, and nothing says when the last one goes.
void KeepForever(OrtCustomOpDomain* domain) {
  static std::mutex mutex;
  static auto* kept = new std::vector<OrtCustomOpDomain*>;
  std::lock_guard<std::mutex> lock(mutex);
  kept->push_back(domain);
}

}  // namespace
}  // namespace deftonnx

extern "C" __attribute__((visibility("default"))) deftonnx::OrtStatus* RegisterCustomOps(
    deftonnx::OrtSessionOptions* options, const deftonnx::OrtApiBase* base) {
  const deftonnx::OrtApi* api = base->GetApi(deftonnx::kApiVersion);
  if (api == nullptr) {
    // too old to make a status with: ask for the oldest API, whose first slot is CreateStatus
    return deftonnx::Ort(base->GetApi(1))
        .CreateStatus(deftonnx::ErrorCode::kFail, "libdeftonnx_ops needs ONNX Runtime 1.22 or newer");
  }
  deftonnx::OrtCustomOpDomain* domain = nullptr;
  deftonnx::OrtStatus* status =
      deftonnx::Ort(api).AddDomain(options, deftonnx::kDomain, deftonnx::GemmOps(), &domain);
  if (domain != nullptr) deftonnx::KeepForever(domain);
  return status;
}
