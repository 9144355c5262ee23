// The family of kernels/gemm_simt.cu: float32 arithmetic without tensor cores, any format and any shape.
#pragma once

#include "gemm_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

struct SimtImage {
  KernelImage image;
  ElementType x_type;
  Format format;
  int tile;  // rows and columns of Y that a block makes
};

extern const ImageTable<SimtImage> kSimtImages;

// They serve where no kernel before them does, and where compute = "simt" asks for them.
void SimtKernels(const GemmNode& node, GemmKernels& kernels);

}  // namespace deftonnx
