// What a DeftAttention node asks for, and one run of it.
#pragma once

#include <string>

#include "operator_node.h"

namespace deftonnx {

enum AttentionInput : size_t { kInputPacked = 0, kInputAttentionBias = 1, kInputRotary = 2 };

struct AttentionSpec : OperatorNode {
  int64_t heads, kv_heads, head_size;
  float scale;
  bool causal;
  bool has_rotary;
  ElementType type;
  std::string kernel;  // the one kernel to use, or empty: choose by shape
};

struct AttentionCall {
  int64_t batch, length;
  const void* x;     // (batch, length, heads + 2 kv_heads, head_size)
  const void* bias;  // strides below, in elements, 0 where it is the same for all; or null
  int64_t bias_batch, bias_head, bias_row;
  const void* rotary;  // (length, head_size) of each batch, cosines and sines; or null
  int64_t rotary_batch;
  void* y;  // (batch, length, heads, head_size)
};

// Reads and checks the node's attributes. Throws InvalidNode.
AttentionSpec ReadAttentionSpec(const Ort& ort, const OrtKernelInfo* info, ElementType type);

// Checks the inputs of a run and makes its output. Throws InvalidNode.
AttentionCall ReadAttentionCall(const AttentionSpec& spec, const Ort& ort, OrtKernelContext* context);

}  // namespace deftonnx
