// The family of kernels/gemm_hopper_fp8.cu (sm_90a): format fp8 on FP8 tensor cores, any number of rows.
#pragma once

#include "gemm_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

// A kernel, of one tile; a multiprocessor has room for one block.
struct HopperFp8Image {
  KernelImage image;
  int block_m, block_n;
  // tuning: a K step of a tile; the end of a tile; the rest of a launch
  float step_ns, tile_ns, fixed_ns;
};

extern const ImageTable<HopperFp8Image> kHopperFp8Images;

void HopperFp8Kernels(const GemmNode& node, GemmKernels& kernels);

}  // namespace deftonnx
