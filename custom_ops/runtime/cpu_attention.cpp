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

std::vector<float> CpuAttention::Rows(const AttentionCall& call, int64_t batch, int64_t head) const {
  const int64_t size = spec_.head_size, heads = spec_.heads + 2 * spec_.kv_heads;
  std::vector<float> rows(call.length * size);
  for (int64_t i = 0; i < call.length * size; ++i) {
    const int64_t row = (batch * call.length + i / size) * heads + head;
    rows[i] = LoadFloat(call.x, spec_.type, row * size + i % size);
  }
  return rows;
}

void CpuAttention::Turn(const AttentionCall& call, int64_t batch, std::vector<float>& rows) const {
  if (call.rotary == nullptr) return;
  const int64_t size = spec_.head_size, half = size / 2;
  for (int64_t row = 0; row < call.length; ++row) {
    for (int64_t i = 0; i < half; ++i) {
      const int64_t turn = batch * call.rotary_batch + row * size + i;
      const float cosine = LoadFloat(call.rotary, spec_.type, turn);
      const float sine = LoadFloat(call.rotary, spec_.type, turn + half);
      float &first = rows[row * size + i], &second = rows[row * size + half + i];
      const float turned = first * cosine - second * sine;
      second = second * cosine + first * sine;
      first = turned;
    }
  }
}

void CpuAttention::Attend(const AttentionCall& call, int64_t index) const {
  const int64_t batch = index / spec_.heads, head = index % spec_.heads;
  const int64_t size = spec_.head_size, length = call.length, features = spec_.heads * size;
  const int64_t shared = spec_.heads + head / (spec_.heads / spec_.kv_heads);
  std::vector<float> queries = Rows(call, batch, head), keys = Rows(call, batch, shared);
  const std::vector<float> values = Rows(call, batch, shared + spec_.kv_heads);
  Turn(call, batch, queries);
  Turn(call, batch, keys);
  std::vector<float> weights(length), sums(size);
  for (int64_t row = 0; row < length; ++row) {
    const int64_t bias = batch * call.bias_batch + head * call.bias_head + row * call.bias_row;
    for (int64_t key = 0; key < length; ++key) {
      float product = 0;
      for (int64_t i = 0; i < size; ++i) product += queries[row * size + i] * keys[key * size + i];
      weights[key] = product * spec_.scale;
      if (call.bias != nullptr) weights[key] += LoadFloat(call.bias, spec_.type, bias + key);
      if (spec_.causal && key > row) weights[key] = -std::numeric_limits<float>::infinity();
    }
    Softmax(weights);
    sums.assign(size, 0);
    for (int64_t key = 0; key < length; ++key) {
      for (int64_t i = 0; i < size; ++i) sums[i] += weights[key] * values[key * size + i];
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
