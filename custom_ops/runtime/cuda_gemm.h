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
    CUkernel kernel;
    TensorMap weight_map;  // if the kernel reads W through one
  };

  GemmSpec spec_;
  const CudaDriver& driver_;
  int multiprocessors_;
  const void *weight_, *scale_, *bias_, *kept_ = nullptr;  // initializers stay where they are
  std::vector<const KernelImage*> images_;
  std::vector<Loaded> loaded_;  // of each image
};

}  // namespace deftonnx
