// DeftConv's weight: unpacked on the host, and in 16 bits in device memory.
#include <algorithm>
#include <cmath>

#include "conv_kernel.h"
#include "float_bits.h"
#include "weight_decoder.h"

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

// Whether W's codes are the values of X's type.
bool HasTypeOfX(const ConvNode& node) {
  const ConvSpec& spec = node.spec;
  const Format format = spec.x_type == ElementType::kFloat16 ? Format::kHalf : Format::kDeft16;
  return node.packed != nullptr && spec.format == format;
}

// W's codes where they are the values of X's type: the rows without their padding.
std::vector<uint16_t> RowsOf(const ConvNode& node) {
  const ConvSpec& spec = node.spec;
  std::vector<uint16_t> codes(spec.N * spec.padded_K);
  node.driver.CopyToHost(codes.data(), node.packed, codes.size() * sizeof(codes[0]));
  for (int64_t n = 1; n < spec.N; ++n) std::copy_n(&codes[n * spec.padded_K], spec.K, &codes[n * spec.K]);
  codes.resize(spec.N * spec.K);
  return codes;
}

bool IsScaled(const std::vector<float>& scale) {
  return std::any_of(scale.begin(), scale.end(), [](float s) { return s != 1; });
}

}  // namespace

const std::vector<float>& ConvNode::Weight() const {
  if (!unpacked.empty() || packed == nullptr) return unpacked;
  const WeightDecoder decoder(spec);
  std::vector<char> codes(decoder.Bytes());
  driver.CopyToHost(codes.data(), packed, codes.size());
  unpacked.resize(spec.N * spec.K);
  for (int64_t n = 0; n < spec.N; ++n) {
    for (int64_t k = 0; k < spec.K; ++k) unpacked[n * spec.K + k] = decoder.Value(codes.data(), n, k);
  }
  return unpacked;
}

const HostWeight16& RoundedWeight16(const ConvNode& node) {
  if (!node.rounded.values.empty()) return node.rounded;
  const ConvSpec& spec = node.spec;
  HostWeight16& rounded = node.rounded;
  if (HasTypeOfX(node)) {
    rounded = {RowsOf(node), node.scale};
    return rounded;
  }
  const bool half = spec.x_type == ElementType::kFloat16;
  const std::vector<float>& weight = node.Weight();
  rounded = {std::vector<uint16_t>(weight.size()), node.scale};
  for (int64_t n = 0; n < spec.N; ++n) {
    const float* row = &weight[n * spec.K];
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
  if (HasTypeOfX(node) && node.spec.padded_K == node.spec.K) {
    node.weight16 = std::make_shared<const Weight16>(Weight16{DeviceBuffer::Borrowed(node.packed),
                                                              DeviceBuffer::Borrowed(node.packed_scale),
                                                              IsScaled(node.scale)});
  } else {
    const HostWeight16& rounded = RoundedWeight16(node);
    auto [values, scale] = DeviceBuffer::Together(node.driver, rounded.values, rounded.scale);
    node.weight16 = std::make_shared<const Weight16>(
        Weight16{std::move(values), std::move(scale), IsScaled(rounded.scale)});
  }
  return node.weight16;
}

}  // namespace deftonnx
