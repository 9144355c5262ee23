#include "cpu_packed.h"

#include <algorithm>
#include <cmath>

#include "cpu_elements.h"
#include "panel_multiply.h"
#include "weight_decoder.h"

namespace deftonnx {
namespace {

constexpr int64_t kRowsAtOnce = 4 * kPanelRows;  // widened to float32 at a time

// The activation of one row of a panel, in place.
void Activate(const Activation& a, float* z) {
  float g[kPanelColumns];
  switch (a.curve) {
    case Activation::kLinear:
      for (int c = 0; c < kPanelColumns; ++c) {
        const float line = z[c] * a.slope + a.offset;
        g[c] = line < a.low ? a.low : line > a.high ? a.high : line;  // NaN passes
      }
      break;
    case Activation::kSigmoid:
      for (int c = 0; c < kPanelColumns; ++c) {
        g[c] = a.slope / (1 + std::exp(-z[c] * (a.low + a.high * z[c] * z[c]))) + a.offset;
      }
      break;
    case Activation::kErf:
      for (int c = 0; c < kPanelColumns; ++c) g[c] = a.slope * (1 + std::erf(z[c] * 0.70710678f)) + a.offset;
      break;
    case Activation::kSlopes:
      for (int c = 0; c < kPanelColumns; ++c) g[c] = z[c] < 0 ? z[c] * a.slope : z[c];
      break;
  }
  for (int c = 0; c < kPanelColumns; ++c) z[c] = a.gated ? z[c] * g[c] : g[c];
}

}  // namespace

CpuPacked::CpuPacked(const Ort& ort, const OrtKernelInfo* info, const PackedNode& node, int64_t groups,
                     size_t first)
    : node_(node),
      groups_(groups),
      outputs_(node.N / groups),
      panels_((outputs_ + kPanelColumns - 1) / kPanelColumns),
      weight_(groups * panels_ * kPanelColumns * node.K),
      bias_(groups * panels_ * kPanelColumns) {
  Tensor codes, scale, bias;
  ort.ConstantInput(info, first, &codes);
  ort.ConstantInput(info, first + 1, &scale);
  ort.ConstantInput(info, first + 2, &bias);
  if (Tensor zero; node.has_zero && ort.ConstantInput(info, kInputResidual, &zero))
    CheckZero(node, zero.data);
  const WeightDecoder decoder(node);
  for (int64_t n = 0; n < node.N; ++n) {
    const float factor = static_cast<const float*>(scale.data)[n];
    const int64_t place = n / outputs_ * panels_ * kPanelColumns + n % outputs_;
    float* column = &weight_[place / kPanelColumns * kPanelColumns * node.K + place % kPanelColumns];
    for (int64_t k = 0; k < node.K; ++k) column[k * kPanelColumns] = decoder.Value(codes.data, n, k) * factor;
    bias_[place] = static_cast<const float*>(bias.data)[n];
  }
}

void CpuPacked::Finish(const void* residual, void* y, int64_t first_row, int64_t rows, int64_t group,
                       int64_t panel, float* sums) const {
  const int64_t first = panel * kPanelColumns;
  const int64_t columns = std::min(kPanelColumns, outputs_ - first);
  const float* bias = &bias_[group * panels_ * kPanelColumns + first];
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t start = (first_row + r) * node_.N + group * outputs_ + first;
    float* z = sums + r * kPanelColumns;
    for (int c = 0; c < kPanelColumns; ++c) z[c] += bias[c];
    if (residual != nullptr) {
      for (int64_t c = 0; c < columns; ++c) z[c] += LoadFloat(residual, node_.y_type, start + c);
    }
    Activate(node_.activation, z);
    for (int64_t c = 0; c < columns; ++c) StoreFloat(y, node_.y_type, start + c, z[c]);
  }
}

void CpuPacked::MultiplyRows(const Ort& ort, OrtKernelContext* context, int64_t group, int64_t first,
                             int64_t rows, const float* wide, const void* residual, void* y) const {
  const int64_t stride = node_.K + kPanelColumns;
  const int64_t chunks = (rows + kPanelRows - 1) / kPanelRows;
  const int64_t chunk = (rows + chunks - 1) / chunks;
  const auto multiply = [&](size_t task) {
    const int64_t start = task / panels_ * chunk, panel = task % panels_;
    const int64_t count = std::min(chunk, rows - start);
    const float* weight = &weight_[(group * panels_ + panel) * kPanelColumns * node_.K];
    float sums[kPanelRows * kPanelColumns];
    MultiplyPanel(wide + start * stride, stride, count, weight, node_.K, sums);
    Finish(residual, y, first + start, count, group, panel, sums);
  };
  InParallel(ort, context, chunks * panels_, multiply);
}

void CpuPacked::Multiply(const Ort& ort, OrtKernelContext* context, int64_t M, const ReadRow& read,
                         const void* residual, void* y) const {
  // rows a power of two apart would compete for the same cache lines
  const int64_t stride = node_.K + kPanelColumns;
  std::vector<float> wide(std::min(M, kRowsAtOnce) * stride);
  for (int64_t group = 0; group < groups_; ++group) {
    for (int64_t first = 0; first < M; first += kRowsAtOnce) {
      const int64_t rows = std::min(kRowsAtOnce, M - first);
      const auto widen = [&](size_t r) { read(group, first + r, &wide[r * stride]); };
      InParallel(ort, context, rows, widen);
      MultiplyRows(ort, context, group, first, rows, wide.data(), residual, y);
    }
  }
}

}  // namespace deftonnx
