#include "mlp_spec.h"

#include <limits>
#include <utility>

namespace deftonnx {
namespace {

constexpr size_t kLeastLayers = 2;
constexpr int64_t kMostFeatures = std::numeric_limits<int32_t>::max() - 1024;

void CheckCount(const MlpSpec& spec, const char* name, size_t count, size_t expected) {
  if (count == expected) return;
  Refuse(spec, std::string("attribute '") + name + "' has " + std::to_string(count) + " values, expected " +
                   std::to_string(expected));
}

void CheckFloats(const Ort& ort, const OrtKernelInfo* info, const GemmSpec& layer, size_t index,
                 const char* name) {
  Tensor tensor;
  if (ort.ConstantInput(info, index, &tensor) && tensor.type != ElementType::kFloat) {
    Refuse(layer, std::string("input ") + name + " must be float32");
  }
}

// Returns whether the node was widened to float32: see CheckOutputType.
bool SetTypes(const AttributeReader& reader, MlpSpec& spec) {
  spec.type = static_cast<ElementType>(reader.Integer("element_type"));
  if (spec.type != ElementType::kFloat16 && spec.type != ElementType::kBfloat16) {
    Refuse(spec, "element_type is neither float16 nor bfloat16");
  }
  const bool widened = reader.CheckOutputType(spec.x_type, spec.y_type, "Y, which is that of input zero");
  for (ElementType end : {spec.x_type, spec.y_type}) {
    if (end != spec.type && end != ElementType::kFloat) {
      Refuse(spec, "X and Y are of element_type or float32");
    }
  }
  return widened;
}

}  // namespace

MlpSpec ReadMlpSpec(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y) {
  MlpSpec spec{};
  spec.op = "DeftMlp";
  spec.x_type = x;
  spec.y_type = y;
  const AttributeReader reader(ort, info, spec);
  CheckLayout(spec, reader.Integer("layout"));
  const std::vector<int64_t> widths = reader.Integers("widths");
  if (widths.size() < kLeastLayers + 1) Refuse(spec, "it needs two layers at least, which have three widths");
  const size_t count = widths.size() - 1;
  for (int64_t width : widths) {
    if (width < 1 || width > kMostFeatures) {
      Refuse(spec, "width " + std::to_string(width) + " is out of range");
    }
  }
  if (ort.InputCount(info) != MlpWeightInput(count)) {
    Refuse(spec, "it has " + std::to_string(ort.InputCount(info)) + " inputs, expected " +
                     std::to_string(MlpWeightInput(count)));
  }
  const std::vector<std::string> formats = reader.Words("formats"), activations = reader.Words("activations");
  const std::vector<int64_t> exponent_bits = reader.Integers("exponent_bits");
  const std::vector<float> alphas = reader.Reals("alphas"), betas = reader.Reals("betas");
  CheckCount(spec, "formats", formats.size(), count);
  CheckCount(spec, "exponent_bits", exponent_bits.size(), count);
  CheckCount(spec, "activations", activations.size(), count);
  CheckCount(spec, "alphas", alphas.size(), count);
  CheckCount(spec, "betas", betas.size(), count);
  const bool widened = SetTypes(reader, spec);
  if (!widened) CheckConstant(ort, info, spec, kMlpInputZero, "zero", {});  // only its type is of use
  const std::string compute = reader.Text("compute");
  if (compute != "auto") spec.kernel = compute;
  for (size_t i = 0; i < count; ++i) {
    GemmSpec layer{};
    layer.op = spec.op;
    layer.node = spec.node;
    layer.part = "layer " + std::to_string(i) + ": ";
    layer.x_type = spec.type;
    layer.y_type = i + 1 < count ? spec.type : spec.y_type;
    layer.weight_type = WeightType(ort, info, MlpWeightInput(i));
    SetFormat(layer, formats[i], spec.x_type);
    if (layer.rounds_x) Refuse(layer, "format fp8 is none of DeftMlp's");
    if (layer.exponent_bits != exponent_bits[i]) {
      Refuse(layer, "exponent_bits = " + std::to_string(exponent_bits[i]) + " are not those of format '" +
                        formats[i] + "'");
    }
    SetSizes(layer, widths[i], widths[i + 1]);
    layer.features = layer.K;
    SetActivation(layer, activations[i], alphas[i], betas[i]);
    CheckWeight(ort, info, layer, MlpWeightInput(i));
    CheckFloats(ort, info, layer, MlpWeightInput(i) + 1, "scale");
    CheckFloats(ort, info, layer, MlpWeightInput(i) + 2, "bias");
    spec.layers.push_back(std::move(layer));
  }
  return spec;
}

MlpInputs ReadMlpInputs(const MlpSpec& spec, const Ort& ort, const OrtKernelContext* context) {
  Tensor x = ort.Input(context, 0);
  const int64_t features = spec.layers.front().K;
  if (x.shape.empty() || x.shape.back() != features) {
    Refuse(spec,
           "X has shape " + ShapeText(x.shape) + ", its last axis must have " + std::to_string(features));
  }
  MlpInputs inputs{1, x.data, std::move(x.shape)};
  inputs.y_shape.back() = spec.layers.back().N;
  for (size_t i = 0; i + 1 < inputs.y_shape.size(); ++i) inputs.M *= inputs.y_shape[i];
  return inputs;
}

}  // namespace deftonnx
