// The family of kernels/gemm_hopper.cu and gemm_transposed.cu (sm_90a): 16-bit X and W of one type, any
// number of rows.
#pragma once

#include "gemm_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

// A kernel and how its blocks work together; see kernels/hopper_work.cuh.
struct HopperImage {
  KernelImage image;
  ElementType type;  // of X and W
  int block_m, block_n;
  bool turns;       // the two warpgroups of a block make tiles in turn, so that one stores while the other
                    // multiplies
  int pair;         // 0; 1: blocks of a cluster share W's tile; 2: X's
  int splits;       // blocks that share out K of a tile
  bool vectors;     // X comes by copies of threads, not of the copy engine: DeftConv's short kept blocks
  bool transposed;  // W is the left operand: kernels/gemm_transposed.cu
  int blocks_per_multiprocessor;
  // tuning: a K step of a tile on a full multiprocessor; the end of a tile; the rest of a launch
  float step_ns, tile_ns, fixed_ns;

  // Rows of the boxes that Y leaves in: kBox of kernels/gemm_transposed.cu, or a warp's of a tile.
  int OutputBoxRows() const {
    if (!transposed) return 16;
    return block_m % 64 == 0 ? 64 : block_m % 32 == 0 ? 32 : 16;
  }
};

extern const ImageTable<HopperImage> kHopperImages;

void HopperKernels(const GemmNode& node, GemmKernels& kernels);

}  // namespace deftonnx
