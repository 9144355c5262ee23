// The family of kernels/conv_hopper.cu: tensor cores of compute capability 9.0, float16 and bfloat16.
#pragma once

#include "conv_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

struct ConvHopperImage {
  KernelImage image;
  ElementType x_type;
  int columns;  // of a tile
};

extern const ImageTable<ConvHopperImage> kConvHopperImages;

}  // namespace deftonnx
