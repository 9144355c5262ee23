// DeftGemm for the CPU provider, so that a session on the CPU runs with the library registered too: ONNX
// Runtime ignores the function body of an operator whose schema it knows. Without the library that body runs
// faster.
#pragma once

#include <vector>

#include "gemm_spec.h"

namespace deftonnx {

class CpuGemm {
 public:
  CpuGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType weight, ElementType y);
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  GemmSpec spec_;
  std::vector<float> weight_;    // (K, N), scaled
  std::vector<float> bias_;      // (N,)
  std::vector<int64_t> column_;  // (K,) the feature of X that each row of the weight multiplies
};

}  // namespace deftonnx
