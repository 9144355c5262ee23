// What the operators that answer which kernels would serve a node have in common.
#pragma once

#include <cstring>
#include <string>

#include "custom_operator.h"
#include "error.h"
#include "ort_abi.h"

namespace deftonnx {

inline void PutText(const Ort& ort, OrtKernelContext* context, const std::string& text) {
  std::memcpy(ort.Output(context, 0, {static_cast<int64_t>(text.size())}), text.data(), text.size());
}

// The attribute of that name: estimates divide by it.
inline int ReadMultiprocessors(const Ort& ort, const OrtKernelInfo* info) {
  constexpr int64_t kMost = 1 << 16;
  const int64_t count = ort.AttributeInt(info, "multiprocessors");
  if (count < 1 || count > kMost) {
    throw InvalidNode("multiprocessors = " + std::to_string(count) + " is out of range");
  }
  return static_cast<int>(count);
}

// The operator `name`, of int64 input 0 and an optional constant int32 input 1, whose State is made from a
// node and computes a text.
template <class State>
OrtCustomOp MakeChoiceOp(const char* name) {
  OrtCustomOp op{};
  op.version = kApiVersion;
  static const char* const kName = name;  // one for each State
  op.GetName = [](const OrtCustomOp*) { return kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputType = [](const OrtCustomOp*, size_t i) {
    return i == 0 ? ElementType::kInt64 : ElementType::kInt32;
  };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return ElementType::kUint8; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<State*>(kernel); };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
    return i == 0 ? kRequired : kOptional;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return kRequired; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    const Ort ort(api);
    return AsStatus(ort, [&] { *kernel = new State(ort, info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto* state = static_cast<const State*>(kernel);
    return AsStatus(state->ort(), [&] { state->Compute(context); });
  };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

}  // namespace deftonnx
