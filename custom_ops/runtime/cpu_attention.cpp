#include "cpu_attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "cpu_elements.h"

namespace deftonnx {
namespace {

// Scores to weights whose sum is 1, or all 0 where every key is masked.
void Softmax(std::vector<float>& scores) {
  float largest = -std::numeric_limits<float>::infinity(), total = 0;
  for (float score : scores) largest = std::fmax(largest, score);
  if (std::isinf(largest) && largest < 0) largest = 0;
  for (float& score : scores) total += score = std::exp(score - largest);
  for (float& score : scores) score = total == 0 ? 0 : score / total;
}

}  // namespace

void CpuAttention::Attend(const AttentionCall& call, int64_t index) const {
  const int64_t batch = index / spec_.heads, head = index % spec_.heads;
  const int64_t size = spec_.head_size, length = call.length, features = spec_.heads * size;
  // queries, keys and values as (length, head_size) each
  std::vector<float> parts[3];
  for (int part = 0; part < 3; ++part) {
    parts[part].resize(length * size);
    for (int64_t i = 0; i < length * size; ++i) {
      const int64_t row = (batch * length + i / size) * 3 + part;
      parts[part][i] = LoadFloat(call.x, spec_.type, row * features + head * size + i % size);
    }
  }
  std::vector<float> weights(length), sums(size);
  for (int64_t row = 0; row < length; ++row) {
    const int64_t bias = batch * call.bias_batch + head * call.bias_head + row * call.bias_row;
    for (int64_t key = 0; key < length; ++key) {
      float product = 0;
      for (int64_t i = 0; i < size; ++i) product += parts[0][row * size + i] * parts[1][key * size + i];
      weights[key] = product * spec_.scale;
      if (call.bias != nullptr) weights[key] += LoadFloat(call.bias, spec_.type, bias + key);
    }
    Softmax(weights);
    sums.assign(size, 0);
    for (int64_t key = 0; key < length; ++key) {
      for (int64_t i = 0; i < size; ++i) sums[i] += weights[key] * parts[2][key * size + i];
    }
    const int64_t to = (batch * length + row) * features + head * size;
    for (int64_t i = 0; i < size; ++i) StoreFloat(call.y, spec_.type, to + i, sums[i]);
  }
}

void CpuAttention::Compute(const Ort& ort, OrtKernelContext* context) const {
  const AttentionCall call = ReadAttentionCall(spec_, ort, context);
  InParallel(ort, context, call.batch * spec_.heads, [&](size_t head) { Attend(call, head); });
}

}  // namespace deftonnx
