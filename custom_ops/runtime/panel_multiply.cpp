#include "panel_multiply.h"

#include <algorithm>

namespace deftonnx {
namespace {

constexpr int64_t kDepth = 256;  // 16 KiB of a panel: stays in the first-level cache

using AddRowsFunction = void (*)(const float* x, int64_t x_stride, int64_t rows, const float* panel,
                                 int64_t depth, float* sums);

namespace any {
#define DEFTONNX_TARGET
#define DEFTONNX_MOST_ROWS 3
#include "panel_rows.inc"
#undef DEFTONNX_TARGET
#undef DEFTONNX_MOST_ROWS
}  // namespace any

#if defined(__x86_64__)
namespace avx2 {
#define DEFTONNX_TARGET __attribute__((target("avx2,fma")))
#define DEFTONNX_MOST_ROWS 6
#include "panel_rows.inc"
#undef DEFTONNX_TARGET
#undef DEFTONNX_MOST_ROWS
}  // namespace avx2

namespace avx512 {
#define DEFTONNX_TARGET __attribute__((target("avx512f,fma")))
#define DEFTONNX_MOST_ROWS 12
#include "panel_rows.inc"
#undef DEFTONNX_TARGET
#undef DEFTONNX_MOST_ROWS
}  // namespace avx512
#endif

AddRowsFunction ForThisProcessor() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return avx512::AddRows<>;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::AddRows<>;
#endif
  return any::AddRows<>;
}

}  // namespace

void MultiplyPanel(const float* x, int64_t x_stride, int64_t rows, const float* panel, int64_t K,
                   float* sums) {
  static const AddRowsFunction add_rows = ForThisProcessor();
  std::fill_n(sums, rows * kPanelColumns, 0.0f);
  for (int64_t k = 0; k < K; k += kDepth) {
    add_rows(x + k, x_stride, rows, panel + k * kPanelColumns, std::min(kDepth, K - k), sums);
  }
}

}  // namespace deftonnx
