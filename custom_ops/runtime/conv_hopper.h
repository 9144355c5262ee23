// The family of DeftConv's kernels in kernels/gemm_hopper.cu: tensor cores of compute capability 9.0, float16
// and bfloat16. X is multiplied as the matrix of its images' windows, which the kernels gather as they read.
#pragma once

#include "conv_kernel.h"
#include "gemm_hopper.h"

namespace deftonnx {

extern const ImageTable<HopperImage> kHopperConvImages;

}  // namespace deftonnx
