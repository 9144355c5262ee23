// DeftConv for the CPU provider.
#pragma once

#include <vector>

#include "conv_spec.h"
#include "cpu_packed.h"

namespace deftonnx {

class CpuConv {
 public:
  CpuConv(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y);
  CpuConv(const CpuConv&) = delete;  // packed_ refers to spec_
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  void ReadWindow(const ConvInputs& inputs, int64_t group, int64_t pixel, float* row) const;
  void Convolve(const Ort& ort, OrtKernelContext* context, const ConvInputs& inputs, void* y) const;
  void Pool(const Ort& ort, OrtKernelContext* context, const ConvShape& shape, const void* pixels,
            void* y) const;

  ConvSpec spec_;
  CpuPacked packed_;
  std::vector<std::vector<FilterRun>> runs_;  // of each group
};

}  // namespace deftonnx
