// DeftGemm for the CPU provider.
#pragma once

#include <vector>

#include "cpu_packed.h"
#include "gemm_spec.h"

namespace deftonnx {

class CpuGemm {
 public:
  CpuGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y);
  CpuGemm(const CpuGemm&) = delete;  // packed_ refers to spec_
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  void WidenRow(const void* x, int64_t m, float* row) const;

  GemmSpec spec_;
  CpuPacked packed_;
  std::vector<int32_t> blocks_;  // the kept ones, if features are eliminated
};

}  // namespace deftonnx
