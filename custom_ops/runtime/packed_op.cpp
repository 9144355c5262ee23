// DeftGemm and DeftConv as ONNX Runtime sees them: names and types.
//
// ONNX Runtime gathers custom operators of one name into one schema and finds the kernel by types, so there
// is one OrtCustomOp for each combination of the types of X and Y (W may have any until the kernel is made).
// It takes the type of Y from the first of them that fits the inputs: X's type comes first, and another one
// must show in the type of the residual.
#include "packed_op.h"

#include "cpu_conv.h"
#include "cpu_gemm.h"
#include "cuda_conv.h"
#include "cuda_gemm.h"
#include "custom_operator.h"
#include "packed_node.h"

namespace deftonnx {
namespace {

ElementType InputType(const OrtCustomOp* op, size_t index) {
  switch (index) {
    case kInputX: return Self(op).x_type;
    case kInputWeight: return ElementType::kUndefined;
    case kInputKept: return ElementType::kInt32;
    case kInputResidual: return Self(op).y_type;
    default: return ElementType::kFloat;
  }
}

template <class Kernel>
TypedOp MakePackedOp(const char* name, ElementType x, ElementType y,
                     const char* (*provider)(const OrtCustomOp*)) {
  TypedOp op = MakeOp<Kernel>(name, x, y, provider);
  op.GetInputType = InputType;
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kPackedInputs; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
    return i < kInputKept ? kRequired : kOptional;
  };
  return op;
}

}  // namespace

std::vector<OrtCustomOp*> PackedOps() {
  static std::vector<TypedOp> ops = [] {
    std::vector<TypedOp> all;
    const auto add = [&](ElementType x, ElementType y) {
      all.push_back(MakePackedOp<CudaGemm>("DeftGemm", x, y, CudaProvider));
      all.push_back(MakePackedOp<CpuGemm>("DeftGemm", x, y, CpuProvider));
      all.push_back(MakePackedOp<CudaConv>("DeftConv", x, y, CudaProvider));
      all.push_back(MakePackedOp<CpuConv>("DeftConv", x, y, CpuProvider));
    };
    const ElementType types[] = {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16};
    for (ElementType x : types) add(x, x);
    for (ElementType x : types) {
      for (ElementType y : types) {
        if (x != y) add(x, y);
      }
    }
    return all;
  }();
  std::vector<OrtCustomOp*> pointers;
  for (TypedOp& op : ops) pointers.push_back(&op);
  return pointers;
}

}  // namespace deftonnx
