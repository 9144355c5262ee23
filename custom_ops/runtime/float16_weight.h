// Weights of more range than float16, under float16 X: no tensor core multiplies bfloat16 by float16. When
// the session is made, such a weight is written anew in a format that float16 kernels read, and a power of
// two in the scale of each output feature stands in for the exponents that it lacks.
//
//   deft16            half: weights down to 2^-32 of the largest of their output feature stay exact; of
//                     smaller ones the error is under 2^-40 of that largest
//   deft8:6, deft8:7  deft8:5: likewise, down to 2^-30 and under 2^-32
#pragma once

#include <cstdint>

#include "gemm_spec.h"

namespace deftonnx {

// Whether CUDA kernels get the node's weight written anew.
bool IsWrittenAnew(const GemmSpec& spec);

// The node as the kernels see it.
GemmSpec AsServed(GemmSpec spec);

// Turns N rows of `row` bfloat16 codes into half codes, in place, and multiplies scale[N] by what they are
// too large by.
void ToHalf(uint16_t* codes, float* scale, int64_t N, int64_t row);

// The same of deft8 codes with 6 or 7 exponent bits, to codes with 5.
void ToDeft8With5(uint8_t* codes, float* scale, int64_t N, int64_t row, int exponent_bits);

}  // namespace deftonnx
