// DeftGemm for the CUDA provider.
#pragma once

#include <vector>

#include "cuda_driver.h"
#include "gemm_spec.h"
#include "kernel_image.h"

namespace deftonnx {

class CudaGemm {
 public:
  // Chooses and loads the kernels that may serve this node; Compute only launches.
  CudaGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType weight, ElementType y);

  // Launches on ONNX Runtime's stream: no allocation, no synchronisation. Safe in several threads at once.
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  struct Loaded {
    const KernelImage* image;
    CUkernel kernel;
  };

  void CheckKeptOnDevice(const Ort& ort, const OrtKernelInfo* info) const;

  GemmSpec spec_;
  const CudaDriver& driver_;
  int multiprocessors_;
  std::vector<Loaded> kernels_;
  std::vector<const KernelImage*> images_;
};

}  // namespace deftonnx
