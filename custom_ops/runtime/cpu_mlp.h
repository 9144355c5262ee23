// DeftMlp for the CPU provider: a layer after the other.
#pragma once

#include <deque>

#include "cpu_packed.h"
#include "mlp_spec.h"

namespace deftonnx {

class CpuMlp {
 public:
  CpuMlp(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y);
  CpuMlp(const CpuMlp&) = delete;  // packed_ refers to spec_
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  MlpSpec spec_;
  std::deque<CpuPacked> packed_;
};

}  // namespace deftonnx
