// Nodes of format fp8 without FP8 tensor cores, and of few rows: X is rounded to FP8 values held as bfloat16,
// and any kernel of bfloat16 X and deft8:4 weights multiplies what they stand for, exactly.
#pragma once

#include "gemm_kernel.h"

namespace deftonnx {

// Appends the kernels of `families` for `node`, of format fp8, each behind the rounding.
void RoundedKernels(const GemmNode& node, const std::vector<GemmFamily>& families, GemmKernels& kernels);

}  // namespace deftonnx
