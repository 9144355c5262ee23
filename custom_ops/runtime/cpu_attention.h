// DeftAttention for the CPU provider: float32 arithmetic, a row of Y at a time.
#pragma once

#include <vector>

#include "attention_spec.h"

namespace deftonnx {

class CpuAttention {
 public:
  CpuAttention(const Ort& ort, const OrtKernelInfo* info, ElementType type, ElementType)
      : spec_(ReadAttentionSpec(ort, info, type)) {}

  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  // All rows of Y of one head, counted over the batch.
  void Attend(const AttentionCall& call, int64_t head) const;

  // (length, head_size) of queries, keys and values one after another, and rotary embeddings of these.
  std::vector<float> Rows(const AttentionCall& call, int64_t batch, int64_t head) const;
  void Turn(const AttentionCall& call, int64_t batch, std::vector<float>& rows) const;

  AttentionSpec spec_;
};

}  // namespace deftonnx
