// float32 from and to the 16-bit types, and the decoding of every weight format, on the CPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace deftonnx {

inline float BitsToFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t FloatToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float Bfloat16ToFloat(uint16_t bits) { return BitsToFloat(static_cast<uint32_t>(bits) << 16); }

inline uint16_t FloatToBfloat16(float value) {
  const uint32_t bits = FloatToBits(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7FFF;
  if (magnitude >= 0x7C00) return BitsToFloat(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
  // a half's bits in a float's place are too small by 2^112; the product is exact, subnormals included
  return BitsToFloat(sign | FloatToBits(BitsToFloat(magnitude << 13) * 0x1p112f));
}

// Rounds to nearest even; beyond the largest half becomes infinity.
inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = FloatToBits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7E00;
  if (magnitude >= 65520.0f) return sign | 0x7C00;
  if (magnitude < 0x1p-14f) {
    // subnormal halves are multiples of 2^-24: adding 0.5 leaves float32 just those bits, and rounds
    return static_cast<uint16_t>(sign | (FloatToBits(magnitude + 0.5f) - FloatToBits(0.5f)));
  }
  const uint32_t wide = FloatToBits(magnitude);
  return static_cast<uint16_t>(sign | ((wide + 0xFFF + ((wide >> 13) & 1) - (112u << 23)) >> 13));
}

// value(code) of deft8 with E exponent bits.
inline float Deft8ToFloat(uint8_t code, int exponent_bits) {
  const int mantissa_bits = 7 - exponent_bits;
  const int exponent = (code & 0x7F) >> mantissa_bits;
  const int mantissa = code & ((1 << mantissa_bits) - 1);
  const int significand = exponent > 0 ? mantissa + (1 << mantissa_bits) : mantissa;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const float value =
      std::ldexp(static_cast<float>(significand), (exponent > 0 ? exponent : 1) - bias - mantissa_bits);
  return (code & 0x80) != 0 ? -value : value;
}

}  // namespace deftonnx
