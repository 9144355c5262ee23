// An operator as ONNX Runtime sees it: an OrtCustomOp for each provider and combination of types, and the
// border between exceptions and OrtStatus.
#pragma once

#include <exception>

#include "error.h"
#include "ort_abi.h"

namespace deftonnx {

struct TypedOp : OrtCustomOp {
  const char* name;
  ElementType x_type, y_type;
};

inline const TypedOp& Self(const OrtCustomOp* op) { return *static_cast<const TypedOp*>(op); }

template <class Kernel>
struct KernelState {
  Ort ort;
  Kernel kernel;
};

// A refused node is an invalid argument, anything else that is thrown a failure.
template <class Body>
OrtStatus* AsStatus(const Ort& ort, Body body) {
  try {
    body();
    return nullptr;
  } catch (const InvalidNode& error) {
    return ort.CreateStatus(ErrorCode::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return ort.CreateStatus(ErrorCode::kFail, error.what());
  }
}

template <class Kernel>
OrtStatus* CreateKernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  Ort ort(api);
  return AsStatus(ort, [&] {
    *kernel = new KernelState<Kernel>{ort, Kernel(ort, info, Self(op).x_type, Self(op).y_type)};
  });
}

template <class Kernel>
OrtStatus* Compute(void* kernel, OrtKernelContext* context) {
  auto* state = static_cast<KernelState<Kernel>*>(kernel);
  return AsStatus(state->ort, [&] { state->kernel.Compute(state->ort, context); });
}

inline const char* CudaProvider(const OrtCustomOp*) { return "CUDAExecutionProvider"; }
inline const char* CpuProvider(const OrtCustomOp*) { return "CPUExecutionProvider"; }

// An operator of one required input of type x and one output of type y. Kernel is made of (ort, info, x, y).
template <class Kernel>
TypedOp MakeOp(const char* name, ElementType x, ElementType y, const char* (*provider)(const OrtCustomOp*)) {
  TypedOp op{};
  op.name = name;
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp* self) { return Self(self).name; };
  op.GetExecutionProviderType = provider;
  op.GetInputType = [](const OrtCustomOp* self, size_t) { return Self(self).x_type; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Self(self).y_type; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<KernelState<Kernel>*>(kernel); };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return kRequired; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return kRequired; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = CreateKernel<Kernel>;
  op.KernelComputeV2 = Compute<Kernel>;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.x_type = x;
  op.y_type = y;
  return op;
}

}  // namespace deftonnx
