// The values of packed weights, on the CPU.
#pragma once

#include <cstdint>

#include "float_bits.h"
#include "packed_node.h"

namespace deftonnx {

// Decodes rows of packed codes; a table holds the 256 values of deft8.
class WeightDecoder {
 public:
  explicit WeightDecoder(const PackedNode& node)
      : format_(node.format),
        row_bytes_(node.padded_K * (node.format == Format::kDeft8     ? 1
                                    : node.format == Format::kFloat32 ? 4
                                                                      : 2)),
        bytes_(row_bytes_ * node.N) {
    if (format_ != Format::kDeft8) return;
    for (int code = 0; code < 256; ++code)
      values_[code] = Deft8ToFloat(static_cast<uint8_t>(code), node.exponent_bits);
  }

  // Of all codes of the node.
  int64_t Bytes() const { return bytes_; }

  // value(code) of output feature n and input feature k, without the scale.
  float Value(const void* codes, int64_t n, int64_t k) const {
    const void* row = static_cast<const char*>(codes) + n * row_bytes_;
    switch (format_) {
      case Format::kFloat32: return static_cast<const float*>(row)[k];
      case Format::kHalf: return HalfToFloat(static_cast<const uint16_t*>(row)[k]);
      case Format::kDeft16: return Bfloat16ToFloat(static_cast<const uint16_t*>(row)[k]);
      case Format::kDeft16q: {
        const uint32_t word = static_cast<const uint32_t*>(row)[k / 2];
        return BitsToFloat(k % 2 == 0 ? word << 16 : word);
      }
      case Format::kDeft8: break;
    }
    return values_[static_cast<const uint8_t*>(row)[k]];
  }

 private:
  Format format_;
  int64_t row_bytes_, bytes_;
  float values_[256];
};

}  // namespace deftonnx
