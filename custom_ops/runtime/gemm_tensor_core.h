// The family of kernels/gemm_tensor_core.py (Triton): any shape, any number of rows.
#pragma once

#include "gemm_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

// W is of X's type; deft8 codes; bfloat16 W under a wider X; what TF32 multiplies.
enum class Operands { kNative, kDeft8, kSplit, kTf32 };

// How tiles reach shared memory; see the kernel.
enum class Loader { kTma, kAligned, kAlignedKept, kElement };

struct Box {
  int rows, columns, type, element_bytes, swizzle;  // type and swizzle: the driver's enumerators
};

struct TensorCoreImage {
  KernelImage image;
  ElementType x_type, w_type;
  Operands operands;
  int terms;        // bfloat16 terms that X is split into
  bool sums_apart;  // exact enough for float32 results of any K
  Loader loader;
  int block_m, block_n, block_k;
  Box x_box, w_box;         // of the loaders with tensor maps
  float step_ns, fixed_ns;  // tuning: a K step of one block on a full GPU; the rest of a block
  int blocks_per_multiprocessor;
};

extern const ImageTable<TensorCoreImage> kTensorCoreImages;

void TensorCoreKernels(const GemmNode& node, GemmKernels& kernels);

}  // namespace deftonnx
