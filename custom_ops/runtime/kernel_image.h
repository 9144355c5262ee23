// A kernel compiled ahead of time and what is needed to choose and launch it. build.py writes the table.
#pragma once

#include <cstddef>

namespace deftonnx {

enum class Operands { kNative, kDeft8, kSplit };  // W is of X's type; deft8 codes; bfloat16 W under a wider X
// See kernels/gemm_tensor_core.py; the first two are kernels/gemm_small_m.cu and gemm_small_m_cluster.cu.
enum class Loader { kSmallM, kSmallMCluster, kTma, kTmaKept, kAligned, kAlignedKept, kElement };

struct Box {
  int rows, columns, type, element_bytes, swizzle;  // type and swizzle: the driver's enumerators
};

struct KernelImage {
  const char* name;   // e.g. "native_tma_128x256x64"
  const char* entry;  // name of the function in the cubin
  int architecture;   // compute capability the machine code is for
  const unsigned char* cubin;
  int shared_bytes, threads;
  int x_type;  // ONNX element type
  Operands operands;
  int terms;  // bfloat16 terms that X is split into
  Loader loader;
  int block_m, block_n, block_k;
  Box x_box, w_box;         // of the loaders with tensor maps
  float step_ns, fixed_ns;  // tuning: a K step of one block on a full GPU; the rest of a block
  int blocks_per_multiprocessor;
};

extern const KernelImage kKernelImages[];
extern const size_t kKernelImageCount;

}  // namespace deftonnx
