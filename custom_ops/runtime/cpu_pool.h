// DeftPool for the CPU provider.
#pragma once

#include "pool_spec.h"

namespace deftonnx {

class CpuPool {
 public:
  CpuPool(const Ort& ort, const OrtKernelInfo* info, ElementType type, ElementType)
      : spec_(ReadPoolSpec(ort, info, type)) {}
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  void PoolPixel(const PoolCall& call, int64_t pixel, void* y) const;
  void NormalisePixel(const PoolCall& call, int64_t pixel, void* y) const;

  PoolSpec spec_;
};

}  // namespace deftonnx
