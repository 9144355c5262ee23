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

ElementType WeightType(const Ort& ort, const OrtKernelInfo* info, size_t index) {
  Tensor weight;
  ort.ConstantInput(info, index, &weight);
  return weight.type;
}

void CheckZero(const PackedNode& node, const void* scalar) {
  uint32_t bits = 0;
  std::memcpy(&bits, scalar, ElementBytes(node.y_type));
  if (bits != 0) Refuse(node, "a residual that is a scalar must be 0, which stands for none");
}

void CheckLayout(const OperatorNode& node, int64_t layout) {
  if (layout != kLayoutVersion) {
    Refuse(node, "layout version " + std::to_string(layout) + " is not one this library knows (1)");
  }
}

void SetSizes(PackedNode& node, int64_t K, int64_t N) {
  node.K = K;
  node.N = N;
  node.padded_K = (K + 15) / 16 * 16;
}

void CheckConstant(const Ort& ort, const OrtKernelInfo* info, const OperatorNode& node, size_t index,
                   const char* name, const std::vector<int64_t>& shape) {
  Tensor tensor;
  if (!ort.ConstantInput(info, index, &tensor)) {
    Refuse(node, std::string("input ") + name + " must be an initializer");
  }
  if (tensor.shape != shape) {
    Refuse(node, std::string("input ") + name + " has shape " + ShapeText(tensor.shape) + ", expected " +
                     ShapeText(shape));
  }
}

void CheckWeight(const Ort& ort, const OrtKernelInfo* info, const PackedNode& node, size_t first) {
  const int64_t row = node.format == Format::kDeft16q ? node.padded_K / 2 : node.padded_K;
  CheckConstant(ort, info, node, first, "W", {node.N, row});
  CheckConstant(ort, info, node, first + 1, "scale", {node.N});
  CheckConstant(ort, info, node, first + 2, "bias", {node.N});
}

NodeReader::NodeReader(const Ort& ort, const OrtKernelInfo* info, PackedNode& node)
    : AttributeReader(ort, info, node), ort_(ort), info_(info), node_(node) {}

void SetActivation(PackedNode& node, const std::string& name, float alpha, float beta) {
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
      {"swish", {Activation::kSigmoid, true, 1, 0, alpha, 0}},
      {"gelu_tanh", {Activation::kSigmoid, true, 1, 0, tanh_gelu, tanh_gelu * 0.044715f}},
      {"gelu", {Activation::kErf, true, 0.5f, 0, 0, 0}},
  };
  const auto found = table.find(name);
  if (found == table.end()) Refuse(node, "unknown activation '" + name + "'");
  node.activation = found->second;
}

void SetFormat(PackedNode& node, const std::string& name, ElementType x) {
  static const std::map<std::string, std::pair<Format, ElementType>> table = {
      {"fp32", {Format::kFloat32, ElementType::kFloat}},
      {"half", {Format::kHalf, ElementType::kFloat16}},
      {"deft16", {Format::kDeft16, ElementType::kBfloat16}},
      {"deft16q", {Format::kDeft16q, ElementType::kUint32}},
  };
  ElementType expected = ElementType::kUint8;
  const auto found = table.find(name);
  if (found != table.end()) {
    node.format = found->second.first;
    expected = found->second.second;
    if (node.format == Format::kHalf && node.weight_type == ElementType::kFloat && x == ElementType::kFloat) {
      node.format = Format::kFloat32;  // widened with the node: see CheckOutputType
      expected = ElementType::kFloat;
    }
  } else if (name.size() == 7 && name.rfind("deft8:", 0) == 0 && name[6] >= '1' && name[6] <= '7') {
    node.format = Format::kDeft8;
    node.exponent_bits = name[6] - '0';
  } else if (name == "fp8") {
    node.format = Format::kDeft8;
    node.exponent_bits = 4;
    node.rounds_x = true;
  } else {
    Refuse(node, "unknown format '" + name + "'");
  }
  // without a type W is no initializer, which is refused later
  if (node.weight_type != expected && node.weight_type != ElementType::kUndefined) {
    Refuse(node, "the type of input W does not match format '" + name + "'");
  }
}

void NodeReader::ReadPacked() const {
  CheckLayout(node_, Integer("layout"));
  SetFormat(node_, Text("format"), node_.x_type);
  SetSizes(node_, Size("K"), Size("N"));
  node_.block = Integer("block");
  if (node_.block < 0 || node_.block > 4096 || (node_.block & (node_.block - 1)) != 0) {
    Refuse(node_, "block = " + std::to_string(node_.block) + " is not a power of two up to 4096");
  }
  while ((int64_t{1} << node_.block_shift) < node_.block) ++node_.block_shift;
  SetActivation(node_, Text("activation"), Real("alpha"), Real("beta"));
  CheckOutputType(node_.x_type, node_.y_type, "Y, which is the residual's, or X's if there is none");
  const std::string compute = Text("compute");
  if (compute != "auto") node_.kernel = compute;
}

void NodeReader::CheckConstants(int64_t blocks) const {
  CheckWeight(ort_, info_, node_);
  const bool has_kept = ort_.InputCount(info_) > kInputKept;
  Tensor residual;
  node_.has_residual = ort_.InputCount(info_) > kInputResidual;
  node_.has_zero =
      node_.has_residual && ort_.ConstantInput(info_, kInputResidual, &residual) && residual.shape.empty();
  if (node_.has_zero) node_.has_residual = false;
  if (has_kept) {
    CheckConstant(ort_, info_, node_, kInputKept, "kept", {blocks});
  } else if (blocks > 0) {
    Refuse(node_, "input kept is missing, expected " + ShapeText({blocks}));
  }
}

}  // namespace deftonnx
