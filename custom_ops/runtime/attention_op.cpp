#include "attention_op.h"

#include "cpu_attention.h"
#include "cuda_attention.h"
#include "custom_operator.h"

namespace deftonnx {
namespace {

template <class Kernel>
TypedOp MakeAttentionOp(ElementType type, const char* (*provider)(const OrtCustomOp*)) {
  TypedOp op = MakeOp<Kernel>("DeftAttention", type, type, provider);
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 3; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
    return i == 0 ? kRequired : kOptional;
  };
  return op;
}

}  // namespace

std::vector<OrtCustomOp*> AttentionOps() {
  static std::vector<TypedOp> ops = [] {
    std::vector<TypedOp> all;
    for (ElementType type : {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}) {
      if (type != ElementType::kFloat) all.push_back(MakeAttentionOp<CudaAttention>(type, CudaProvider));
      all.push_back(MakeAttentionOp<CpuAttention>(type, CpuProvider));
    }
    return all;
  }();
  std::vector<OrtCustomOp*> pointers;
  for (TypedOp& op : ops) pointers.push_back(&op);
  return pointers;
}

}  // namespace deftonnx
