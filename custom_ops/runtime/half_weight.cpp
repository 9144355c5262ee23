#include "half_weight.h"

#include <algorithm>
#include <cmath>

#include "float_bits.h"

namespace deftonnx {
namespace {

constexpr int kLargestExponent = 15;     // of half
constexpr int kSmallestExponent = -126;  // of a scale: smaller ones could be flushed to zero by a kernel

// By what power of two the row is to be divided, so that its largest code is at the top of half's range.
int Exponent(const uint16_t* codes, int64_t row) {
  int largest = 0;  // sign off, bfloat16 codes compare as integers
  for (int64_t k = 0; k < row; ++k) largest = std::max(largest, codes[k] & 0x7FFF);
  if (largest == 0) return 0;
  return std::max(std::ilogb(Bfloat16ToFloat(static_cast<uint16_t>(largest))) - kLargestExponent,
                  kSmallestExponent);
}

}  // namespace

bool BecomesHalf(const GemmSpec& spec) {
  const bool simt = spec.kernel.find("simt") != std::string::npos;  // made for the format itself
  return spec.format == Format::kDeft16 && spec.x_type == ElementType::kFloat16 && !simt;
}

GemmSpec AsServed(GemmSpec spec) {
  if (BecomesHalf(spec)) {
    spec.format = Format::kHalf;
    spec.weight_type = ElementType::kFloat16;
  }
  return spec;
}

void ToHalf(uint16_t* codes, float* scale, int64_t N, int64_t row) {
  for (int64_t n = 0; n < N; ++n, codes += row) {
    const int exponent = Exponent(codes, row);
    scale[n] = std::ldexp(scale[n], exponent);
    // in two steps: 2^-exponent alone may leave float32's range
    const float first = std::ldexp(1.0f, -exponent / 2), second = std::ldexp(1.0f, -exponent - -exponent / 2);
    for (int64_t k = 0; k < row; ++k) codes[k] = FloatToHalf(Bfloat16ToFloat(codes[k]) * first * second);
  }
}

}  // namespace deftonnx
