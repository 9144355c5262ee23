// Loads kernels once a process and device.
#pragma once

#include "cuda_driver.h"
#include "kernel_image.h"

namespace deftonnx {

// The kernel of `image`, ready to launch on `device`. Thread-safe. Throws CudaError.
CUkernel LoadKernel(const CudaDriver& driver, const KernelImage& image, CUdevice device);

}  // namespace deftonnx
