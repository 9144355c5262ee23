#include "wide_codes.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace deftonnx {
namespace {

constexpr int kMagnitudes = 128;  // a code without its sign
constexpr int kLargestField = 30, kHalfBias = 15;
constexpr double kLostShare = 0x1p-24;

// One output feature: the exponent field from which on nothing is kept, and its share of codes.
class Feature {
 public:
  Feature(const uint8_t* codes, int64_t K, int exponent_bits) : mantissa_bits_(7 - exponent_bits) {
    for (int64_t k = 0; k < K; ++k) ++count_[codes[k] & (kMagnitudes - 1)];
    largest_ = kMagnitudes - 1;
    while (largest_ > 0 && count_[largest_] == 0) --largest_;
    below_ = std::max((largest_ >> mantissa_bits_) - kLargestField, 0);
  }

  int Below() const { return below_; }
  int Floor() const { return below_ << mantissa_bits_; }

  bool KeepsEnough() const {
    if (below_ == 0) return true;
    double lost = 0;
    for (int m = 1; m < (below_ + 1) << mantissa_bits_; ++m) lost += count_[m] * Value(m);
    return lost <= kLostShare * Value(largest_);
  }

 private:
  // of a magnitude, but for the bias
  double Value(int magnitude) const {
    const int field = magnitude >> mantissa_bits_, ones = 1 << mantissa_bits_;
    const int mantissa = magnitude & (ones - 1);
    return std::ldexp(field == 0 ? mantissa : mantissa + ones, std::max(field, 1) - mantissa_bits_);
  }

  int mantissa_bits_, largest_, below_;
  int64_t count_[kMagnitudes] = {};
};

}  // namespace

std::shared_ptr<const WideCodes> WideCodes::Make(const GemmNode& node) {
  const GemmSpec& spec = node.spec;
  std::vector<uint8_t> codes(spec.N * spec.padded_K);
  std::vector<float> scale(spec.N);
  node.driver.CopyToHost(codes.data(), node.weight, codes.size());
  node.driver.CopyToHost(scale.data(), node.scale, scale.size() * sizeof(float));
  const int bias = (1 << (spec.exponent_bits - 1)) - 1;
  std::vector<uint32_t> floors(spec.N);
  for (int64_t n = 0; n < spec.N; ++n) {
    const Feature feature(codes.data() + n * spec.padded_K, spec.K, spec.exponent_bits);
    if (!feature.KeepsEnough()) return nullptr;
    const uint32_t negative = -(feature.Floor() << 8) & 0xffff;
    floors[n] = negative << 16 | negative;
    const float scaled = std::ldexp(scale[n], kHalfBias - bias + feature.Below());
    if (scale[n] != 0 && !std::isnormal(scaled)) return nullptr;
    scale[n] = scaled;
  }
  auto wide = std::make_shared<WideCodes>();
  wide->floors = DeviceBuffer(node.driver, floors);
  wide->scale = DeviceBuffer(node.driver, scale);
  return wide;
}

}  // namespace deftonnx
