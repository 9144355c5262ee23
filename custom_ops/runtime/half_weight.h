// deft16 weights under float16 X: no tensor core multiplies bfloat16 by float16. When the session is made,
// such a weight is written anew as format half, which float16 kernels read: float16 has more mantissa bits,
// and a power-of-two scale for each output feature stands in for the exponents it lacks. Weights down to
// 2^-32 of the largest of their output feature stay exact; of smaller ones the error is under 2^-40 of that
// largest.
#pragma once

#include <cstdint>

#include "gemm_spec.h"

namespace deftonnx {

// Whether CUDA kernels get the node's weight as half instead.
bool BecomesHalf(const GemmSpec& spec);

// The node as the kernels see it: of format half, if it becomes that.
GemmSpec AsServed(GemmSpec spec);

// Turns N rows of `row` bfloat16 codes into half codes, in place, and multiplies scale[N] by what they are
// too large by.
void ToHalf(uint16_t* codes, float* scale, int64_t N, int64_t row);

}  // namespace deftonnx
