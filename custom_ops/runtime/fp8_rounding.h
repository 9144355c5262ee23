// Format fp8 on the CPU; deftonnx/formats/fp8.py defines it, kernels/round_rows.cu does the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "packed_node.h"

namespace deftonnx {

// Rounds the K features of a row, in place, to values of deft8:4 times a power of two. A row that holds
// infinities or NaN becomes NaN.
void RoundToFp8(float* row, int64_t K);

// Checks that no code, in host memory, is one that FP8 tensor cores read as NaN. Throws InvalidNode.
void CheckFp8Codes(const PackedNode& node, const uint8_t* codes, size_t count);

}  // namespace deftonnx
