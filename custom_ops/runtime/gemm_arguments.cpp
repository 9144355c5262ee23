#include "gemm_arguments.h"

#include <cmath>

namespace deftonnx {
namespace {

int Bias(int exponent_bits) { return (1 << (exponent_bits - 1)) - 1; }

}  // namespace

int32_t TypeCode(ElementType type) {
  return type == ElementType::kFloat ? 0 : type == ElementType::kFloat16 ? 1 : 2;
}

Decoding Decoding::ToFloat32(int exponent_bits) {
  return {8 - exponent_bits, 0, std::ldexp(1.0f, 127 - Bias(exponent_bits))};
}

Decoding Decoding::ToFloat16(int exponent_bits) {
  return {5 - exponent_bits, 0, std::ldexp(1.0f, 15 - Bias(exponent_bits))};
}

Decoding Decoding::ToBfloat16(int exponent_bits) {
  const int32_t power = (127 - Bias(exponent_bits) + 127) << 7;  // 2^(127 - bias)
  return {8 - exponent_bits, power << 16 | power, 1};
}

Decoding Decoding::ForTensorCores(const GemmSpec& spec) {
  if (spec.format != Format::kDeft8) return {};
  return spec.x_type == ElementType::kFloat16 ? ToFloat16(spec.exponent_bits)
                                              : ToBfloat16(spec.exponent_bits);
}

bool ServesFewRows(const GemmSpec& spec) {
  switch (spec.format) {
    case Format::kHalf: return spec.x_type == ElementType::kFloat16;
    case Format::kDeft16: return spec.x_type == ElementType::kBfloat16;
    case Format::kDeft8: return spec.x_type != ElementType::kFloat;
    case Format::kFloat32:
    case Format::kDeft16q: break;
  }
  return false;
}

NodeArguments::NodeArguments(const GemmNode& node, const Decoding& decoding)
    : node_(node),
      N_(static_cast<int32_t>(node.spec.N)),
      K_(static_cast<int32_t>(node.spec.K)),
      features_(static_cast<int32_t>(node.spec.features)),
      padded_K_(static_cast<int32_t>(node.spec.padded_K)),
      block_shift_(node.spec.block_shift),
      decoding_(decoding),
      curve_(node.spec.activation.curve),
      gated_(node.spec.activation.gated),
      y_type_(TypeCode(node.spec.y_type)) {}

void NodeArguments::Add(Arguments& arguments, const GemmCall& call, const int32_t& M) const {
  arguments.Add(node_.scale);
  arguments.Add(node_.bias);
  arguments.Add(node_.kept);
  arguments.Add(call.residual);
  arguments.Add(call.y);
  arguments.Add(M);
  for (const int32_t* size : {&N_, &K_, &features_, &padded_K_, &block_shift_}) arguments.Add(*size);
  arguments.Add(decoding_.shift);
  arguments.Add(decoding_.factor);
  arguments.Add(decoding_.accumulator_scale);
  arguments.Add(curve_);
  arguments.Add(gated_);
  const Activation& activation = node_.spec.activation;
  for (const float* value : {&activation.slope, &activation.offset, &activation.low, &activation.high}) {
    arguments.Add(*value);
  }
  arguments.Add(y_type_);
}

}  // namespace deftonnx
