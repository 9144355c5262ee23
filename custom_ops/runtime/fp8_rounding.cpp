#include "fp8_rounding.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "float_bits.h"

namespace deftonnx {
namespace {

constexpr uint32_t kInfinity = 0x7F800000;
constexpr int kLeastPower = -100;   // of two
constexpr int kLeastExponent = -6;  // of a value that is not subnormal
constexpr int kMantissaBits = 3;

// The least power of two, as its exponent, that brings a magnitude of these bits to 448 = 1.75 * 2^8 or
// below.
int PowerFor(uint32_t bits) {
  return std::max(static_cast<int>((bits + (0x7FFFFF - 0x600000)) >> 23) - 127 - 8, kLeastPower);
}

// To the nearest value of deft8:4, to the even one of two.
float Round(float v) {
  const int exponent = static_cast<int>(FloatToBits(v) >> 23 & 0xFF) - 127;
  // adding it leaves float32 just the bits that there are
  const float magic = std::ldexp(1.5f, std::max(exponent, kLeastExponent) + 23 - kMantissaBits);
  return v + magic - magic;
}

}  // namespace

void RoundToFp8(float* row, int64_t K) {
  uint32_t bits = 0;  // sign off, float32 compares as an integer, and NaN is the greatest
  for (int64_t k = 0; k < K; ++k) bits = std::max(bits, FloatToBits(row[k]) & 0x7FFFFFFF);
  if (bits >= kInfinity) {
    std::fill(row, row + K, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  const int power = PowerFor(bits);
  const float down = std::ldexp(1.0f, -power), up = std::ldexp(1.0f, power);
  for (int64_t k = 0; k < K; ++k) row[k] = Round(row[k] * down) * up;
}

void CheckFp8Codes(const PackedNode& node, const uint8_t* codes, size_t count) {
  const bool found = std::any_of(codes, codes + count, [](uint8_t code) { return (code & 0x7F) == 0x7F; });
  if (found) Refuse(node, "W holds the code 0x7F or 0xFF, which format 'fp8' has no value for");
}

}  // namespace deftonnx
