// The family of kernels/gemm_hopper_codes.cu (sm_90a): 16-bit X and deft8 weights, any number of rows.
#pragma once

#include "gemm_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

// Which codes a kernel unpacks, and how.
enum class HopperCodes {
  kShifted,  // any E whose exponents X's type holds
  kE4,
  kE5,  // and 6 and 7: see float16_weight.h
};

// A kernel and how its blocks work together; see kernels/hopper_work.cuh.
struct HopperCodesImage {
  KernelImage image;
  ElementType type;  // of X
  HopperCodes codes;
  int block_m, block_n;
  bool pair;   // two blocks of a cluster share X's tile
  int splits;  // blocks that share out K of a tile
  int blocks_per_multiprocessor;
  // tuning: a K step of a tile on a full multiprocessor; the end of a tile; the rest of a launch
  float step_ns, tile_ns, fixed_ns;
};

extern const ImageTable<HopperCodesImage> kHopperCodesImages;

void HopperCodesKernels(const GemmNode& node, GemmKernels& kernels);

}  // namespace deftonnx
