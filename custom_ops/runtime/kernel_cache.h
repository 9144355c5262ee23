// Kernels of the process, each loaded when it is first launched: nodes have many kernels that they never run.
#pragma once

#include <atomic>

#include "cuda_driver.h"
#include "kernel_image.h"

namespace deftonnx {

// The kernel of an image on one device. Thread-safe.
class LazyKernel {
 public:
  LazyKernel(const CudaDriver& driver, const KernelImage& image, CUdevice device)
      : driver_(driver), image_(image), device_(device) {}

  // Ready to launch. Throws CudaError if the machine code cannot be loaded.
  CUkernel Get();

 private:
  const CudaDriver& driver_;
  const KernelImage& image_;
  const CUdevice device_;
  std::atomic<CUkernel> ready_ = nullptr;
};

// The one of `image` and `device`. Never destroyed.
LazyKernel& KernelOf(const CudaDriver& driver, const KernelImage& image, CUdevice device);

}  // namespace deftonnx
