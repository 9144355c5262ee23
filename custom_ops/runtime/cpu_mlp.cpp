#include "cpu_mlp.h"

#include <utility>
#include <vector>

#include "cpu_elements.h"

namespace deftonnx {

CpuMlp::CpuMlp(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y)
    : spec_(ReadMlpSpec(ort, info, x, y)) {
  for (size_t i = 0; i < spec_.layers.size(); ++i) {
    packed_.emplace_back(ort, info, spec_.layers[i], 1, MlpWeightInput(i));
  }
}

void CpuMlp::Compute(const Ort& ort, OrtKernelContext* context) const {
  const MlpInputs inputs = ReadMlpInputs(spec_, ort, context);
  void* y = ort.Output(context, 0, inputs.y_shape);
  std::vector<uint16_t> before, behind;  // what a layer reads and makes between X and Y
  const void* x = inputs.x;
  if (spec_.x_type != spec_.type) {
    behind.resize(inputs.M * spec_.layers.front().K);
    InParallel(ort, context, inputs.M, [&](size_t m) {
      const int64_t K = spec_.layers.front().K;
      for (int64_t i = m * K; i < static_cast<int64_t>(m + 1) * K; ++i) {
        StoreFloat(behind.data(), spec_.type, i, LoadFloat(x, spec_.x_type, i));
      }
    });
    std::swap(before, behind);
    x = before.data();
  }
  for (size_t i = 0; i < spec_.layers.size(); ++i) {
    const GemmSpec& layer = spec_.layers[i];
    const bool last = i + 1 == spec_.layers.size();
    if (!last) behind.resize(inputs.M * layer.N);
    const auto read = [&](int64_t, int64_t m, float* row) {
      for (int64_t k = 0; k < layer.K; ++k) row[k] = LoadFloat(x, spec_.type, m * layer.K + k);
    };
    packed_[i].Multiply(ort, context, inputs.M, read, nullptr, last ? y : behind.data());
    std::swap(before, behind);
    x = before.data();
  }
}

}  // namespace deftonnx
