// The float32 multiply of the CPU kernel.
#pragma once

#include <cstdint>

namespace deftonnx {

// W (K, N) is kept as panels of this many columns: panel p holds W[k][16 p .. 16 p + 15], k after k.
constexpr int64_t kPanelColumns = 16;
// Rows of X that share what they read of a panel from the first-level cache.
constexpr int64_t kPanelRows = 96;

// sums (rows, 16) = X (rows, K) times one panel. x_stride: elements between rows of X. rows <= kPanelRows.
// Sums of 256 products are added up apart, which also keeps the rounding errors of a long K small.
void MultiplyPanel(const float* x, int64_t x_stride, int64_t rows, const float* panel, int64_t K,
                   float* sums);

}  // namespace deftonnx
