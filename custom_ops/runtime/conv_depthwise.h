// The family of kernels/conv_depthwise.cu: one channel a group, 16 bits.
#pragma once

#include "conv_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

struct ConvDepthwiseImage {
  KernelImage image;
  ElementType x_type;
  int columns, stride;  // of the filters it is made for; columns = 0: any
};

extern const ImageTable<ConvDepthwiseImage> kConvDepthwiseImages;

}  // namespace deftonnx
