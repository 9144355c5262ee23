// The family of kernels/gemm_stream.cu: up to 32 rows of X, the weights streamed through shared memory once.
#pragma once

#include "gemm_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

struct StreamImage {
  KernelImage image;  // threads and shared_bytes are the most a launch may use
  ElementType x_type, w_type;
  int most_rows;  // of X
};

extern const ImageTable<StreamImage> kStreamImages;

// Appends one kernel for each size of X the images are made for.
void StreamKernels(const GemmNode& node, GemmKernels& kernels);

}  // namespace deftonnx
