// Nodes whose kept blocks are shorter than a K step: the kept features of X are written side by side first
// (kernels/gather_kept.cu), and any kernel multiplies them as a dense matrix.
#pragma once

#include "gemm_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

struct GatherKeptImage {
  KernelImage image;
  int word_bytes;  // that are copied together
};

extern const ImageTable<GatherKeptImage> kGatherKeptImages;

// Appends the kernels of `families` for `node`, which has kept blocks, each behind the gathering. Their names
// end in "_gathered".
void GatheredKernels(const GemmNode& node, const std::vector<GemmFamily>& families, GemmKernels& kernels);

}  // namespace deftonnx
