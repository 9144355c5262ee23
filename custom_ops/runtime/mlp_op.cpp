#include "mlp_op.h"

#include "cpu_mlp.h"
#include "cuda_mlp.h"
#include "custom_operator.h"
#include "mlp_spec.h"

namespace deftonnx {
namespace {

// Behind X and a zero of Y's type, the constants of two layers at least, of any types.
template <class Kernel>
TypedOp MakeMlpOp(ElementType x, ElementType y, const char* (*provider)(const OrtCustomOp*)) {
  TypedOp op = MakeOp<Kernel>("DeftMlp", x, y, provider);
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kMlpInputZero + 2; };
  op.GetInputType = [](const OrtCustomOp* self, size_t index) {
    if (index == 0) return Self(self).x_type;
    return index == kMlpInputZero ? Self(self).y_type : ElementType::kUndefined;
  };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) -> int {
    return index <= kMlpInputZero ? kRequired : kVariadic;
  };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 6; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  return op;
}

}  // namespace

std::vector<OrtCustomOp*> MlpOps() {
  static std::vector<TypedOp> ops = [] {
    std::vector<TypedOp> all;
    const auto add = [&](ElementType x, ElementType y) {
      all.push_back(MakeMlpOp<CudaMlp>(x, y, CudaProvider));
      all.push_back(MakeMlpOp<CpuMlp>(x, y, CpuProvider));
    };
    const ElementType narrow[] = {ElementType::kFloat16, ElementType::kBfloat16};
    for (ElementType type : narrow) add(type, type);
    add(ElementType::kFloat, ElementType::kFloat);
    for (ElementType type : narrow) {
      add(type, ElementType::kFloat);
      add(ElementType::kFloat, type);
    }
    return all;
  }();
  std::vector<OrtCustomOp*> pointers;
  for (TypedOp& op : ops) pointers.push_back(&op);
  return pointers;
}

}  // namespace deftonnx
