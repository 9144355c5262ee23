#include "cpu_gemm.h"

#include "cpu_elements.h"
#include "fp8_rounding.h"

namespace deftonnx {

CpuGemm::CpuGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y)
    : spec_(ReadGemmSpec(ort, info, x, y)), packed_(ort, info, spec_, 1) {
  if (spec_.rounds_x) {
    Tensor codes;
    ort.ConstantInput(info, kInputWeight, &codes);
    CheckFp8Codes(spec_, static_cast<const uint8_t*>(codes.data), spec_.N * spec_.padded_K);
  }
  if (spec_.block == 0) return;
  Tensor kept;
  ort.ConstantInput(info, kInputKept, &kept);
  const auto* blocks = static_cast<const int32_t*>(kept.data);
  CheckKept(spec_, blocks, kept.shape[0]);
  blocks_.assign(blocks, blocks + kept.shape[0]);
}

// Row m of X, its kept features side by side as float32.
void CpuGemm::WidenRow(const void* x, int64_t m, float* row) const {
  const int64_t start = m * spec_.features;
  if (spec_.block == 0) {
    for (int64_t k = 0; k < spec_.K; ++k) row[k] = LoadFloat(x, spec_.x_type, start + k);
    return;
  }
  for (int64_t k = 0; k < spec_.K; ++k) {
    const int64_t column = blocks_[k / spec_.block] * spec_.block + k % spec_.block;
    row[k] = LoadFloat(x, spec_.x_type, start + column);
  }
}

void CpuGemm::Compute(const Ort& ort, OrtKernelContext* context) const {
  const GemmInputs inputs = ReadInputs(spec_, ort, context);
  void* y = ort.Output(context, 0, inputs.y_shape);
  const auto read = [&](int64_t, int64_t m, float* row) {
    WidenRow(inputs.x, m, row);
    if (spec_.rounds_x) RoundToFp8(row, spec_.K);
  };
  packed_.Multiply(ort, context, inputs.M, read, inputs.residual, y);
}

}  // namespace deftonnx
