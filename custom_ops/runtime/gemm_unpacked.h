// Nodes of 8-bit weights that keep a second form of them, unpacked once, when the session is made: the
// kernels of 16-bit weights multiply it. Unpacking codes takes integer instructions that tensor cores wait
// for where a product is small, and power that they lack where it is large, so a copy is worth memory that
// would be free. Where W is read from device memory for a few rows of X, half the bytes are worth more: there
// the codes go on being read.
#pragma once

#include "gemm_kernel.h"
#include "kernel_image.h"

namespace deftonnx {

struct UnpackImage {
  KernelImage image;
  enum { kUnpacks, kDigests } what;
};

extern const ImageTable<UnpackImage> kUnpackImages;

// Whether a copy of the node's weight may be kept, and kernels could multiply it.
bool CanUnpack(const GemmNode& node);

// The kernels that multiply a copy of W; their names end in "_unpacked". The copy lives as long as kernels
// that multiply it, of all nodes of that weight. With `keep` false there is none, and the kernels only tell
// their estimates. They take more than 32 rows of X, unless the node asks for one by name. Throws CudaError.
GemmKernels UnpackedKernels(const GemmNode& node, bool keep);

}  // namespace deftonnx
