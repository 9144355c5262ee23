#include "pool_op.h"

#include "cpu_pool.h"
#include "cuda_pool.h"
#include "custom_operator.h"

namespace deftonnx {
std::vector<OrtCustomOp*> PoolOps() {
  static std::vector<TypedOp> ops = [] {
    std::vector<TypedOp> all;
    for (ElementType type : {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}) {
      all.push_back(MakeOp<CudaPool>("DeftPool", type, type, CudaProvider));
      all.push_back(MakeOp<CpuPool>("DeftPool", type, type, CpuProvider));
    }
    return all;
  }();
  std::vector<OrtCustomOp*> pointers;
  for (TypedOp& op : ops) pointers.push_back(&op);
  return pointers;
}

}  // namespace deftonnx
