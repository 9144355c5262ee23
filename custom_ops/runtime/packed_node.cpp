#include "packed_node.h"

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

}  // namespace

ElementType WeightType(const Ort& ort, const OrtKernelInfo* info) {
  Tensor weight;
  ort.ConstantInput(info, kInputWeight, &weight);
  return weight.type;
}

void CheckZero(const PackedNode& node, const void* scalar) {
  uint32_t bits = 0;
  std::memcpy(&bits, scalar, ElementBytes(node.y_type));
  if (bits != 0) Refuse(node, "a residual that is a scalar must be 0, which stands for none");
}

NodeReader::NodeReader(const Ort& ort, const OrtKernelInfo* info, PackedNode& node)
    : AttributeReader(ort, info, node), ort_(ort), info_(info), node_(node) {}

void NodeReader::SetActivation() const {
  const std::string name = Text("activation");
  const float alpha = Real("alpha"), beta = Real("beta");
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
  if (found == table.end()) Refuse(node_, "unknown activation '" + name + "'");
  node_.activation = found->second;
}

void NodeReader::SetFormat(const std::string& name) const {
  static const std::map<std::string, std::pair<Format, ElementType>> table = {
      {"fp32", {Format::kFloat32, ElementType::kFloat}},
      {"half", {Format::kHalf, ElementType::kFloat16}},
      {"deft16", {Format::kDeft16, ElementType::kBfloat16}},
      {"deft16q", {Format::kDeft16q, ElementType::kUint32}},
  };
  ElementType expected = ElementType::kUint8;
  const auto found = table.find(name);
  if (found != table.end()) {
    node_.format = found->second.first;
    expected = found->second.second;
  } else if (name.size() == 7 && name.rfind("deft8:", 0) == 0 && name[6] >= '1' && name[6] <= '7') {
    node_.format = Format::kDeft8;
    node_.exponent_bits = name[6] - '0';
  } else if (name == "fp8") {
    node_.format = Format::kDeft8;
    node_.exponent_bits = 4;
    node_.rounds_x = true;
  } else {
    Refuse(node_, "unknown format '" + name + "'");
  }
  // without a type W is no initializer, which is refused later
  if (node_.weight_type != expected && node_.weight_type != ElementType::kUndefined) {
    Refuse(node_, "the type of input W does not match format '" + name + "'");
  }
}

void NodeReader::ReadPacked() const {
  const int64_t layout = Integer("layout");
  if (layout != kLayoutVersion) {
    Refuse(node_, "layout version " + std::to_string(layout) + " is not one this library knows (1)");
  }
  SetFormat(Text("format"));
  node_.K = Size("K");
  node_.N = Size("N");
  node_.padded_K = (node_.K + 15) / 16 * 16;
  node_.block = Integer("block");
  if (node_.block < 0 || node_.block > 4096 || (node_.block & (node_.block - 1)) != 0) {
    Refuse(node_, "block = " + std::to_string(node_.block) + " is not a power of two up to 4096");
  }
  while ((int64_t{1} << node_.block_shift) < node_.block) ++node_.block_shift;
  SetActivation();
  if (Integer("output_type") != static_cast<int64_t>(node_.y_type)) {
    Refuse(node_, "output_type is not the type of Y, which is the residual's, or X's if there is none");
  }
  const std::string compute = Text("compute");
  if (compute != "auto") node_.kernel = compute;
}

Tensor NodeReader::Constant(size_t index, const char* name) const {
  Tensor tensor;
  if (!ort_.ConstantInput(info_, index, &tensor)) {
    Refuse(node_, std::string("input ") + name + " must be an initializer");
  }
  return tensor;
}

void NodeReader::CheckConstant(size_t index, const char* name, const std::vector<int64_t>& shape) const {
  const Tensor tensor = Constant(index, name);
  if (tensor.shape != shape) {
    Refuse(node_, std::string("input ") + name + " has shape " + ShapeText(tensor.shape) + ", expected " +
                      ShapeText(shape));
  }
}

void NodeReader::CheckConstants(int64_t blocks) const {
  const int64_t row = node_.format == Format::kDeft16q ? node_.padded_K / 2 : node_.padded_K;
  CheckConstant(kInputWeight, "W", {node_.N, row});
  CheckConstant(kInputScale, "scale", {node_.N});
  CheckConstant(kInputBias, "bias", {node_.N});
  const bool has_kept = ort_.InputCount(info_) > kInputKept;
  Tensor residual;
  node_.has_residual = ort_.InputCount(info_) > kInputResidual;
  node_.has_zero =
      node_.has_residual && ort_.ConstantInput(info_, kInputResidual, &residual) && residual.shape.empty();
  if (node_.has_zero) node_.has_residual = false;
  if (has_kept) {
    CheckConstant(kInputKept, "kept", {blocks});
  } else if (blocks > 0) {
    Refuse(node_, "input kept is missing, expected " + ShapeText({blocks}));
  }
}

}  // namespace deftonnx
