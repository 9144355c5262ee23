// DeftGemm for the CPU provider, so that a session on the CPU runs with the library registered too: ONNX
// Runtime ignores the function body of an operator whose schema it knows. The weight is unpacked once, to
// float32.
#pragma once

#include <vector>

#include "gemm_spec.h"

namespace deftonnx {

class CpuGemm {
 public:
  CpuGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y);
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  void WidenRow(const void* x, int64_t m, float* row) const;
  void Finish(const GemmInputs& inputs, void* y, int64_t first_row, int64_t rows, int64_t panel,
              float* sums) const;

  GemmSpec spec_;
  int64_t panels_;
  std::vector<float> weight_;    // (panels, K, 16), scaled
  std::vector<float> bias_;      // (16 panels,), zeros behind N
  std::vector<int32_t> blocks_;  // the kept ones, if features are eliminated
};

}  // namespace deftonnx
