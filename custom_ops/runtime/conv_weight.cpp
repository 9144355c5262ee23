// DeftConv's weight in 16 bits.
#include <algorithm>
#include <cmath>

#include "conv_kernel.h"
#include "float_bits.h"

namespace deftonnx {
namespace {

constexpr float kMostFloat16 = 65504;
constexpr float kLeastNormalFloat16 = 0x1p-14f;

// The power of two to multiply a row by so that float16 holds it: 1 if it does already, to its last bit.
float RowFactor(const float* row, int64_t K) {
  float most = 0;
  bool exact = true;
  for (int64_t k = 0; k < K; ++k) {
    const float value = std::fabs(row[k]);
    most = std::max(most, value);
    if (value != 0 && value < kLeastNormalFloat16) exact = exact && HalfToFloat(FloatToHalf(value)) == value;
  }
  if (most == 0 || (exact && most <= kMostFloat16)) return 1;
  return std::ldexp(1.0f, 15 - std::ilogb(most));
}

}  // namespace

HostWeight16 RoundedWeight16(const ConvNode& node) {
  const ConvSpec& spec = node.spec;
  const bool half = spec.x_type == ElementType::kFloat16;
  HostWeight16 rounded{std::vector<uint16_t>(node.weight.size()), node.scale};
  for (int64_t n = 0; n < spec.N; ++n) {
    const float* row = &node.weight[n * spec.K];
    const float factor = half ? RowFactor(row, spec.K) : 1;
    rounded.scale[n] /= factor;
    for (int64_t k = 0; k < spec.K; ++k) {
      rounded.values[n * spec.K + k] = half ? FloatToHalf(row[k] * factor) : FloatToBfloat16(row[k]);
    }
  }
  return rounded;
}

std::shared_ptr<const Weight16> SharedWeight16(const ConvNode& node) {
  if (node.weight16 != nullptr) return node.weight16;
  const HostWeight16 rounded = RoundedWeight16(node);
  const bool scaled = std::any_of(rounded.scale.begin(), rounded.scale.end(), [](float s) { return s != 1; });
  node.weight16 = std::make_shared<const Weight16>(
      Weight16{DeviceBuffer(node.driver, rounded.values), DeviceBuffer(node.driver, rounded.scale), scaled});
  return node.weight16;
}

}  // namespace deftonnx
