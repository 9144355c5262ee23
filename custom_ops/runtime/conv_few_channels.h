// The family of kernels/conv_few_channels.cu: tensor cores of compute capability 8.0 and newer, short
// filters.
#pragma once

#include "conv_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

struct ConvFewChannelsImage {
  KernelImage image;
  ElementType x_type;
  bool pooled;  // whether Y has the maxima of squares of pixels
};

extern const ImageTable<ConvFewChannelsImage> kConvFewChannelsImages;

}  // namespace deftonnx
