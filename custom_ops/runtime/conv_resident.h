// The family of kernels/conv_resident.cu: filters of few features, whose W stays in shared memory; compute
// capability 9.0, float16 and bfloat16.
#pragma once

#include "conv_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

struct ConvResidentImage {
  KernelImage image;
  ElementType type;         // of X and W
  int block_n, warpgroups;  // outputs of a tile; warpgroups that make tiles in turn
  // tuning: a K step of a tile of 64 rows; the end of a tile; the rest of a launch
  float step_ns, tile_ns, fixed_ns;
};

extern const ImageTable<ConvResidentImage> kConvResidentImages;

}  // namespace deftonnx
