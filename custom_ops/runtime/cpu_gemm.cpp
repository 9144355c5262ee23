#include "cpu_gemm.h"

#include <algorithm>

#include "error.h"
#include "float_bits.h"

namespace deftonnx {
namespace {

float WeightValue(const GemmSpec& spec, const void* row, int64_t k) {
  switch (spec.format) {
    case Format::kHalf: return HalfToFloat(static_cast<const uint16_t*>(row)[k]);
    case Format::kDeft16: return Bfloat16ToFloat(static_cast<const uint16_t*>(row)[k]);
    case Format::kDeft16q: {
      const uint32_t word = static_cast<const uint32_t*>(row)[k / 2];
      return BitsToFloat(k % 2 == 0 ? word << 16 : word);
    }
    case Format::kDeft8: break;
  }
  return Deft8ToFloat(static_cast<const uint8_t*>(row)[k], spec.exponent_bits);
}

float Load(const void* data, ElementType type, int64_t index) {
  if (type == ElementType::kFloat16) return HalfToFloat(static_cast<const uint16_t*>(data)[index]);
  if (type == ElementType::kBfloat16) return Bfloat16ToFloat(static_cast<const uint16_t*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

void Store(void* data, ElementType type, int64_t index, float value) {
  if (type == ElementType::kFloat16) {
    static_cast<uint16_t*>(data)[index] = FloatToHalf(value);
  } else if (type == ElementType::kBfloat16) {
    static_cast<uint16_t*>(data)[index] = FloatToBfloat16(value);
  } else {
    static_cast<float*>(data)[index] = value;
  }
}

float Activate(const Activation& a, float z) {
  float g = z;
  switch (a.curve) {
    case Activation::kLinear: {
      const float line = z * a.slope + a.offset;
      g = line < a.low ? a.low : line > a.high ? a.high : line;  // NaN passes
      break;
    }
    case Activation::kSigmoid: g = a.slope / (1 + std::exp(-z * (a.low + a.high * z * z))) + a.offset; break;
    case Activation::kErf: g = a.slope * (1 + std::erf(z * 0.70710678f)) + a.offset; break;
    case Activation::kSlopes: g = z < 0 ? z * a.slope : z; break;
  }
  return a.gated ? z * g : g;
}

}  // namespace

CpuGemm::CpuGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType weight, ElementType y)
    : spec_(ReadGemmSpec(ort, info, x, weight, y)),
      weight_(spec_.K * spec_.N),
      bias_(spec_.N),
      column_(spec_.K) {
  Tensor codes, scale, bias, kept;
  ort.ConstantInput(info, 1, &codes);
  ort.ConstantInput(info, 2, &scale);
  ort.ConstantInput(info, 3, &bias);
  const int64_t row_bytes = spec_.padded_K * (spec_.format == Format::kDeft8 ? 1 : 2);
  for (int64_t n = 0; n < spec_.N; ++n) {
    const void* row = static_cast<const char*>(codes.data) + n * row_bytes;
    for (int64_t k = 0; k < spec_.K; ++k) {
      weight_[k * spec_.N + n] = WeightValue(spec_, row, k) * static_cast<const float*>(scale.data)[n];
    }
  }
  std::copy_n(static_cast<const float*>(bias.data), spec_.N, bias_.begin());
  for (int64_t k = 0; k < spec_.K; ++k) column_[k] = k;
  if (spec_.block == 0) return;
  ort.ConstantInput(info, 4, &kept);
  const auto* blocks = static_cast<const int32_t*>(kept.data);
  CheckKept(spec_, blocks, kept.shape[0]);
  for (int64_t k = 0; k < spec_.K; ++k) column_[k] = blocks[k / spec_.block] * spec_.block + k % spec_.block;
}

void CpuGemm::Compute(const Ort& ort, OrtKernelContext* context) const {
  const GemmInputs inputs = ReadInputs(spec_, ort, context);
  void* y = ort.Output(context, 0, inputs.y_shape);
  std::vector<float> sum(spec_.N);
  for (int64_t m = 0; m < inputs.M; ++m) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int64_t k = 0; k < spec_.K; ++k) {
      const float factor = Load(inputs.x, spec_.x_type, m * spec_.features + column_[k]);
      const float* row = &weight_[k * spec_.N];
      for (int64_t n = 0; n < spec_.N; ++n) sum[n] += factor * row[n];
    }
    for (int64_t n = 0; n < spec_.N; ++n) {
      const int64_t index = m * spec_.N + n;
      float z = sum[n] + bias_[n];
      if (inputs.residual != nullptr) z += Load(inputs.residual, spec_.y_type, index);
      Store(y, spec_.y_type, index, Activate(spec_.activation, z));
    }
  }
}

}  // namespace deftonnx
