// The kernels of kernels/pool.cu.
#pragma once

#include "kernel_image.h"
#include "pool_spec.h"

namespace deftonnx {

struct PoolImage {
  KernelImage image;
  PoolKind kind;  // kAverage serves kAveragePadded too
  ElementType type;
  int width;  // channels of a thread
};

extern const ImageTable<PoolImage> kPoolImages;

}  // namespace deftonnx
