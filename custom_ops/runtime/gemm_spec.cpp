#include "gemm_spec.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "error.h"

namespace deftonnx {
namespace {

constexpr int64_t kLayoutVersion = 1;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

[[noreturn]] void Refuse(const GemmSpec& spec, const std::string& reason) {
  throw InvalidNode("DeftGemm node '" + spec.node + "': " + reason);
}

template <class Read>
auto Attribute(const GemmSpec& spec, const char* name, Read read) {
  try {
    return read(name);
  } catch (const OrtError&) {
    Refuse(spec, std::string("attribute '") + name + "' is missing or of the wrong type");
  }
}

Activation MakeActivation(const GemmSpec& spec, const std::string& name, float alpha, float beta) {
  const float tanh_gelu = 2 * std::sqrt(2 / 3.14159265358979f);
  const std::map<std::string, Activation> table = {
      {"none", {Activation::kLinear, false, 1, 0, -kInfinity, kInfinity}},
      {"relu", {Activation::kLinear, false, 1, 0, 0, kInfinity}},
      {"clip", {Activation::kLinear, false, 1, 0, alpha, beta}},
      {"hard_sigmoid", {Activation::kLinear, false, alpha, beta, 0, 1}},
      {"hard_swish", {Activation::kLinear, true, 1.0f / 6, 0.5f, 0, 1}},
      {"leaky_relu", {Activation::kSlopes, false, alpha, 0, 0, 0}},
      {"sigmoid", {Activation::kSigmoid, false, 1, 0, 1, 0}},
      {"tanh", {Activation::kSigmoid, false, 2, -1, 2, 0}},
      {"silu", {Activation::kSigmoid, true, 1, 0, 1, 0}},
      {"gelu_tanh", {Activation::kSigmoid, true, 1, 0, tanh_gelu, tanh_gelu * 0.044715f}},
      {"gelu", {Activation::kErf, true, 0.5f, 0, 0, 0}},
  };
  const auto found = table.find(name);
  if (found == table.end()) Refuse(spec, "unknown activation '" + name + "'");
  return found->second;
}

void SetFormat(GemmSpec& spec, const std::string& name) {
  static const std::map<std::string, std::pair<Format, ElementType>> table = {
      {"fp32", {Format::kFloat32, ElementType::kFloat}},
      {"half", {Format::kHalf, ElementType::kFloat16}},
      {"deft16", {Format::kDeft16, ElementType::kBfloat16}},
      {"deft16q", {Format::kDeft16q, ElementType::kUint32}},
  };
  ElementType expected = ElementType::kUint8;
  const auto found = table.find(name);
  if (found != table.end()) {
    spec.format = found->second.first;
    expected = found->second.second;
  } else if (name.size() == 7 && name.rfind("deft8:", 0) == 0 && name[6] >= '1' && name[6] <= '7') {
    spec.format = Format::kDeft8;
    spec.exponent_bits = name[6] - '0';
  } else {
    Refuse(spec, "unknown format '" + name + "'");
  }
  // without a type W is no initializer, which is refused later
  if (spec.weight_type != expected && spec.weight_type != ElementType::kUndefined) {
    Refuse(spec, "the type of input W does not match format '" + name + "'");
  }
}

std::string Shape(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

void CheckConstant(const Ort& ort, const OrtKernelInfo* info, const GemmSpec& spec, size_t index,
                   const char* name, const std::vector<int64_t>& shape) {
  Tensor tensor;
  if (!ort.ConstantInput(info, index, &tensor))
    Refuse(spec, std::string("input ") + name + " must be an initializer");
  if (tensor.shape != shape) {
    Refuse(spec,
           std::string("input ") + name + " has shape " + Shape(tensor.shape) + ", expected " + Shape(shape));
  }
}

void SetSizes(const Ort& ort, const OrtKernelInfo* info, GemmSpec& spec) {
  const auto integer = [&](const char* name) { return ort.AttributeInt(info, name); };
  for (auto [name, size] :
       {std::pair<const char*, int64_t*>{"features", &spec.features}, {"K", &spec.K}, {"N", &spec.N}}) {
    *size = Attribute(spec, name, integer);
    if (*size < 1 || *size > std::numeric_limits<int32_t>::max() - 1024) {
      Refuse(spec, std::string(name) + " = " + std::to_string(*size) + " is out of range");
    }
  }
  spec.padded_K = (spec.K + 15) / 16 * 16;
  spec.block = Attribute(spec, "block", integer);
  if (spec.block < 0 || spec.block > 4096 || (spec.block & (spec.block - 1)) != 0) {
    Refuse(spec, "block = " + std::to_string(spec.block) + " is not a power of two up to 4096");
  }
  while ((int64_t{1} << spec.block_shift) < spec.block) ++spec.block_shift;
  if (spec.block == 0 && spec.features != spec.K) {
    Refuse(spec, "features and K differ, but block = 0 keeps all features");
  }
}

}  // namespace

GemmSpec ReadGemmAttributes(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType weight,
                            ElementType y) {
  GemmSpec spec{};
  spec.node = ort.NodeName(info);
  spec.x_type = x;
  spec.weight_type = weight;
  spec.y_type = y;
  const auto integer = [&](const char* name) { return ort.AttributeInt(info, name); };
  const auto real = [&](const char* name) { return ort.AttributeFloat(info, name); };
  const auto text = [&](const char* name) { return ort.AttributeString(info, name); };

  const int64_t layout = Attribute(spec, "layout", integer);
  if (layout != kLayoutVersion) {
    Refuse(spec, "layout version " + std::to_string(layout) + " is not one this library knows (1)");
  }
  SetFormat(spec, Attribute(spec, "format", text));
  SetSizes(ort, info, spec);
  spec.activation = MakeActivation(spec, Attribute(spec, "activation", text), Attribute(spec, "alpha", real),
                                   Attribute(spec, "beta", real));
  if (Attribute(spec, "output_type", integer) != static_cast<int64_t>(y)) {
    Refuse(spec, "output_type is not the type of Y, which is the residual's, or X's if there is none");
  }
  const std::string compute = Attribute(spec, "compute", text);
  if (compute != "auto") spec.kernel = compute;
  return spec;
}

GemmSpec ReadGemmSpec(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y) {
  Tensor weight;
  ort.ConstantInput(info, 1, &weight);
  GemmSpec spec = ReadGemmAttributes(ort, info, x, weight.type, y);
  const int64_t row = spec.format == Format::kDeft16q ? spec.padded_K / 2 : spec.padded_K;
  CheckConstant(ort, info, spec, 1, "W", {spec.N, row});
  CheckConstant(ort, info, spec, 2, "scale", {spec.N});
  CheckConstant(ort, info, spec, 3, "bias", {spec.N});
  Tensor kept;
  const bool has_kept = ort.InputCount(info) > 4;
  if (has_kept && !ort.ConstantInput(info, 4, &kept)) Refuse(spec, "input kept must be an initializer");
  const int64_t expected = spec.block == 0 ? 0 : (spec.K + spec.block - 1) / spec.block;
  if ((has_kept || expected > 0) && kept.shape != std::vector<int64_t>{expected}) {
    Refuse(spec, "input kept has shape " + Shape(kept.shape) + ", expected " + Shape({expected}));
  }
  Tensor residual;
  spec.has_residual = ort.InputCount(info) > 5;
  spec.has_zero = spec.has_residual && ort.ConstantInput(info, 5, &residual) && residual.shape.empty();
  if (spec.has_zero) spec.has_residual = false;
  return spec;
}

GemmInputs ReadInputs(const GemmSpec& spec, const Ort& ort, const OrtKernelContext* context) {
  Tensor x = ort.Input(context, 0);
  if (x.shape.empty() || x.shape.back() != spec.features) {
    Refuse(spec,
           "X has shape " + Shape(x.shape) + ", its last axis must have " + std::to_string(spec.features));
  }
  GemmInputs inputs{1, x.data, nullptr, std::move(x.shape)};
  inputs.y_shape.back() = spec.N;
  for (size_t i = 0; i + 1 < inputs.y_shape.size(); ++i) inputs.M *= inputs.y_shape[i];
  if (!spec.has_residual) return inputs;
  const Tensor residual = ort.Input(context, 5);
  if (residual.shape != inputs.y_shape) {
    Refuse(spec, "residual has shape " + Shape(residual.shape) + ", Y has " + Shape(inputs.y_shape));
  }
  inputs.residual = residual.data;
  return inputs;
}

void CheckZero(const GemmSpec& spec, const void* scalar) {
  uint32_t bits = 0;
  std::memcpy(&bits, scalar, ElementBytes(spec.y_type));
  if (bits != 0) Refuse(spec, "a residual that is a scalar must be 0, which stands for none");
}

void CheckKept(const GemmSpec& spec, const int32_t* kept, size_t count) {
  int64_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    const int64_t start = kept[i] * spec.block;
    if (kept[i] < 0 || start >= spec.features) {
      Refuse(spec, "kept block " + std::to_string(kept[i]) + " is outside the " +
                       std::to_string(spec.features) + " features");
    }
    if (i > 0 && kept[i] <= kept[i - 1]) {
      Refuse(spec, "kept blocks must increase, but " + std::to_string(kept[i]) + " follows " +
                       std::to_string(kept[i - 1]));
    }
    total += spec.features - start < spec.block ? spec.features - start : spec.block;
  }
  if (total != spec.K) {
    Refuse(spec,
           "the kept blocks hold " + std::to_string(total) + " features, K is " + std::to_string(spec.K));
  }
}

}  // namespace deftonnx
