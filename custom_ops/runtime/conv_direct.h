// The family of kernels/conv_direct.cu: any node.
#pragma once

#include "conv_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

struct ConvDirectImage {
  KernelImage image;
  ElementType x_type;
};

extern const ImageTable<ConvDirectImage> kConvDirectImages;

}  // namespace deftonnx
