#include "cpu_gemm.h"

#include <algorithm>

#include "error.h"
#include "float_bits.h"
#include "panel_multiply.h"

namespace deftonnx {
namespace {

constexpr int64_t kRowsAtOnce = 4 * kPanelRows;  // of X widened to float32 at a time

// Decodes one row of packed codes; a table holds the 256 values of deft8.
class RowDecoder {
 public:
  explicit RowDecoder(const GemmSpec& spec) : format_(spec.format) {
    if (format_ != Format::kDeft8) return;
    for (int code = 0; code < 256; ++code)
      values_[code] = Deft8ToFloat(static_cast<uint8_t>(code), spec.exponent_bits);
  }

  float Value(const void* row, int64_t k) const {
    switch (format_) {
      case Format::kFloat32: return static_cast<const float*>(row)[k];
      case Format::kHalf: return HalfToFloat(static_cast<const uint16_t*>(row)[k]);
      case Format::kDeft16: return Bfloat16ToFloat(static_cast<const uint16_t*>(row)[k]);
      case Format::kDeft16q: {
        const uint32_t word = static_cast<const uint32_t*>(row)[k / 2];
        return BitsToFloat(k % 2 == 0 ? word << 16 : word);
      }
      case Format::kDeft8: break;
    }
    return values_[static_cast<const uint8_t*>(row)[k]];
  }

 private:
  Format format_;
  float values_[256];
};

float Load(const void* data, ElementType type, int64_t index) {
  if (type == ElementType::kFloat16) return HalfToFloat(static_cast<const uint16_t*>(data)[index]);
  if (type == ElementType::kBfloat16) return Bfloat16ToFloat(static_cast<const uint16_t*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

void Store(void* data, ElementType type, int64_t index, float value) {
  if (type == ElementType::kFloat16) {
    static_cast<uint16_t*>(data)[index] = FloatToHalf(value);
  } else if (type == ElementType::kBfloat16) {
    static_cast<uint16_t*>(data)[index] = FloatToBfloat16(value);
  } else {
    static_cast<float*>(data)[index] = value;
  }
}

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

// Runs task(0) ... task(count - 1) on the session's threads.
template <class Task>
void InParallel(const Ort& ort, const OrtKernelContext* context, size_t count, const Task& task) {
  const auto call = [](void* state, size_t i) { (*static_cast<const Task*>(state))(i); };
  ort.ParallelFor(context, call, count, const_cast<Task*>(&task));
}

}  // namespace

CpuGemm::CpuGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y)
    : spec_(ReadGemmSpec(ort, info, x, y)),
      panels_((spec_.N + kPanelColumns - 1) / kPanelColumns),
      weight_(panels_ * kPanelColumns * spec_.K),
      bias_(panels_ * kPanelColumns) {
  Tensor codes, scale, bias, kept, zero;
  ort.ConstantInput(info, 1, &codes);
  ort.ConstantInput(info, 2, &scale);
  ort.ConstantInput(info, 3, &bias);
  const RowDecoder decoder(spec_);
  const int64_t row_bytes = codes.shape[1] * ElementBytes(spec_.weight_type);
  for (int64_t n = 0; n < spec_.N; ++n) {
    const void* row = static_cast<const char*>(codes.data) + n * row_bytes;
    const float factor = static_cast<const float*>(scale.data)[n];
    float* column = &weight_[n / kPanelColumns * kPanelColumns * spec_.K + n % kPanelColumns];
    for (int64_t k = 0; k < spec_.K; ++k) column[k * kPanelColumns] = decoder.Value(row, k) * factor;
  }
  std::copy_n(static_cast<const float*>(bias.data), spec_.N, bias_.begin());
  if (spec_.has_zero && ort.ConstantInput(info, 5, &zero)) CheckZero(spec_, zero.data);
  if (spec_.block == 0) return;
  ort.ConstantInput(info, 4, &kept);
  const auto* blocks = static_cast<const int32_t*>(kept.data);
  CheckKept(spec_, blocks, kept.shape[0]);
  blocks_.assign(blocks, blocks + kept.shape[0]);
}

// Row m of X, its kept features side by side as float32.
void CpuGemm::WidenRow(const void* x, int64_t m, float* row) const {
  const int64_t start = m * spec_.features;
  if (spec_.block == 0) {
    for (int64_t k = 0; k < spec_.K; ++k) row[k] = Load(x, spec_.x_type, start + k);
    return;
  }
  for (int64_t k = 0; k < spec_.K; ++k) {
    row[k] = Load(x, spec_.x_type, start + blocks_[k / spec_.block] * spec_.block + k % spec_.block);
  }
}

void CpuGemm::Finish(const GemmInputs& inputs, void* y, int64_t first_row, int64_t rows, int64_t panel,
                     float* sums) const {
  const int64_t first = panel * kPanelColumns;
  const int64_t columns = std::min(kPanelColumns, spec_.N - first);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t start = (first_row + r) * spec_.N + first;
    float* z = sums + r * kPanelColumns;
    for (int c = 0; c < kPanelColumns; ++c) z[c] += bias_[first + c];
    if (inputs.residual != nullptr) {
      for (int64_t c = 0; c < columns; ++c) z[c] += Load(inputs.residual, spec_.y_type, start + c);
    }
    Activate(spec_.activation, z);
    for (int64_t c = 0; c < columns; ++c) Store(y, spec_.y_type, start + c, z[c]);
  }
}

void CpuGemm::Compute(const Ort& ort, OrtKernelContext* context) const {
  const GemmInputs inputs = ReadInputs(spec_, ort, context);
  void* y = ort.Output(context, 0, inputs.y_shape);
  // rows a power of two apart would compete for the same cache lines
  const int64_t stride = spec_.K + kPanelColumns;
  std::vector<float> wide(std::min(inputs.M, kRowsAtOnce) * stride);
  for (int64_t start = 0; start < inputs.M; start += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, inputs.M - start);
    const auto widen = [&](size_t r) { WidenRow(inputs.x, start + r, &wide[r * stride]); };
    InParallel(ort, context, rows, widen);
    const int64_t chunks = (rows + kPanelRows - 1) / kPanelRows;
    const int64_t chunk = (rows + chunks - 1) / chunks;
    const auto multiply = [&](size_t task) {
      const int64_t first = task / panels_ * chunk, panel = task % panels_;
      const int64_t count = std::min(chunk, rows - first);
      float sums[kPanelRows * kPanelColumns];
      MultiplyPanel(&wide[first * stride], stride, count, &weight_[panel * kPanelColumns * spec_.K], spec_.K,
                    sums);
      Finish(inputs, y, start + first, count, panel, sums);
    };
    InParallel(ort, context, chunks * panels_, multiply);
  }
}

}  // namespace deftonnx
