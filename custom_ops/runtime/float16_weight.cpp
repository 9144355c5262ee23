#include "float16_weight.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "float_bits.h"

namespace deftonnx {
namespace {

constexpr int kLargestExponent = 15;     // of half, and of deft8:5
constexpr int kSmallestExponent = -126;  // of a scale: smaller ones could be flushed to zero by a kernel

// By what power of two a row is to be divided, so that its largest value is at the top of half's range.
int Exponent(float largest) {
  return largest == 0 ? 0 : std::max(std::ilogb(largest) - kLargestExponent, kSmallestExponent);
}

float LargestBfloat16(const uint16_t* codes, int64_t row) {
  int largest = 0;  // sign off, bfloat16 codes compare as integers
  for (int64_t k = 0; k < row; ++k) largest = std::max(largest, codes[k] & 0x7FFF);
  return Bfloat16ToFloat(static_cast<uint16_t>(largest));
}

float LargestDeft8(const uint8_t* codes, int64_t row, int exponent_bits) {
  int largest = 0;  // and so do deft8 codes
  for (int64_t k = 0; k < row; ++k) largest = std::max(largest, codes[k] & 0x7F);
  return Deft8ToFloat(static_cast<uint8_t>(largest), exponent_bits);
}

// For every code that of the nearest value with 5 exponent bits, divided by 2^exponent: a half's upper byte.
std::array<uint8_t, 256> NewCodes(int exponent_bits, int exponent) {
  std::array<uint8_t, 256> table;
  for (int code = 0; code < 256; ++code) {
    const float value = std::ldexp(Deft8ToFloat(static_cast<uint8_t>(code), exponent_bits), -exponent);
    const uint16_t half = FloatToHalf(value);
    table[code] = static_cast<uint8_t>((half + 0x7F + (half >> 8 & 1)) >> 8);
  }
  return table;
}

}  // namespace

bool IsWrittenAnew(const GemmSpec& spec) {
  const bool simt = spec.kernel.find("simt") != std::string::npos;  // made for the format itself
  const bool wide =
      spec.format == Format::kDeft16 || (spec.format == Format::kDeft8 && spec.exponent_bits > 5);
  return wide && spec.x_type == ElementType::kFloat16 && !simt;
}

GemmSpec AsServed(GemmSpec spec) {
  if (!IsWrittenAnew(spec)) return spec;
  if (spec.format == Format::kDeft8) {
    spec.exponent_bits = 5;
  } else {
    spec.format = Format::kHalf;
    spec.weight_type = ElementType::kFloat16;
  }
  return spec;
}

void ToHalf(uint16_t* codes, float* scale, int64_t N, int64_t row) {
  for (int64_t n = 0; n < N; ++n, codes += row) {
    const int exponent = Exponent(LargestBfloat16(codes, row));
    scale[n] = std::ldexp(scale[n], exponent);
    // in two steps: 2^-exponent alone may leave float32's range
    const float first = std::ldexp(1.0f, -exponent / 2), second = std::ldexp(1.0f, -exponent - -exponent / 2);
    for (int64_t k = 0; k < row; ++k) codes[k] = FloatToHalf(Bfloat16ToFloat(codes[k]) * first * second);
  }
}

void ToDeft8With5(uint8_t* codes, float* scale, int64_t N, int64_t row, int exponent_bits) {
  int last = 0;
  std::array<uint8_t, 256> table = NewCodes(exponent_bits, last);
  for (int64_t n = 0; n < N; ++n, codes += row) {
    int exponent = Exponent(LargestDeft8(codes, row, exponent_bits));
    if (scale[n] > 0) exponent = std::max(exponent, kSmallestExponent - std::ilogb(scale[n]));
    if (exponent != last) table = NewCodes(exponent_bits, last = exponent);
    scale[n] = std::ldexp(scale[n], exponent);
    for (int64_t k = 0; k < row; ++k) codes[k] = table[codes[k]];
  }
}

}  // namespace deftonnx
