// The family of kernels/gemm_small_m.cu: 8 or 16 rows of X, the weights read once.
#pragma once

#include "gemm_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

struct FewRowsImage {
  KernelImage image;
  ElementType x_type, w_type;
  int most_rows, block_n;
};

extern const ImageTable<FewRowsImage> kFewRowsImages;

void FewRowsKernels(const GemmNode& node, GemmKernels& kernels);

}  // namespace deftonnx
