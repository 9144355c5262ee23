#include "gemm_spec.h"

#include <string>
#include <utility>

namespace deftonnx {
namespace {

// Any kernel that reads W as it is packed: the least memory.
constexpr char kPacked[] = "packed";

// Rows of X of that shape, or 0 if they are not known.
int64_t KnownRows(const std::vector<int64_t>& shape) {
  int64_t rows = shape.empty() ? 0 : 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows = shape[i] > 0 ? rows * shape[i] : 0;
  return rows;
}

}  // namespace

GemmSpec ReadGemmAttributes(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType weight,
                            ElementType y) {
  GemmSpec spec{};
  spec.op = "DeftGemm";
  spec.x_type = x;
  spec.weight_type = weight;
  spec.y_type = y;
  const NodeReader reader(ort, info, spec);
  reader.ReadPacked();
  spec.features = reader.Size("features");
  if (spec.block == 0 && spec.features != spec.K) {
    Refuse(spec, "features and K differ, but block = 0 keeps all features");
  }
  if (spec.kernel == kPacked) {
    spec.kernel.clear();
    spec.unpacks = false;
  }
  return spec;
}

GemmSpec ReadGemmSpec(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y) {
  GemmSpec spec = ReadGemmAttributes(ort, info, x, WeightType(ort, info), y);
  const int64_t blocks = spec.block == 0 ? 0 : (spec.K + spec.block - 1) / spec.block;
  NodeReader(ort, info, spec).CheckConstants(blocks);
  spec.rows = KnownRows(ort.InputShape(info, kInputX));
  return spec;
}

GemmInputs ReadInputs(const GemmSpec& spec, const Ort& ort, const OrtKernelContext* context) {
  Tensor x = ort.Input(context, kInputX);
  if (x.shape.empty() || x.shape.back() != spec.features) {
    Refuse(spec, "X has shape " + ShapeText(x.shape) + ", its last axis must have " +
                     std::to_string(spec.features));
  }
  GemmInputs inputs{1, x.data, nullptr, std::move(x.shape)};
  inputs.y_shape.back() = spec.N;
  for (size_t i = 0; i + 1 < inputs.y_shape.size(); ++i) inputs.M *= inputs.y_shape[i];
  if (!spec.has_residual) return inputs;
  const Tensor residual = ort.Input(context, kInputResidual);
  if (residual.shape != inputs.y_shape) {
    Refuse(spec, "residual has shape " + ShapeText(residual.shape) + ", Y has " + ShapeText(inputs.y_shape));
  }
  inputs.residual = residual.data;
  return inputs;
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
