// DeftPool for the CUDA provider.
#pragma once

#include <vector>

#include "cuda_driver.h"
#include "kernel_cache.h"
#include "pool_image.h"

namespace deftonnx {

class CudaPool {
 public:
  CudaPool(const Ort& ort, const OrtKernelInfo* info, ElementType type, ElementType);

  // Launches on ONNX Runtime's stream, without synchronisation. Safe in several threads at once.
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  struct Candidate {
    const PoolImage* row;
    LazyKernel* kernel;
  };

  PoolSpec spec_;
  const CudaDriver& driver_;
  std::vector<Candidate> kernels_;  // the widest first
};

}  // namespace deftonnx
