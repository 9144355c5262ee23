// What the launches of DeftConv's own kernels share.
#pragma once

#include <cstdint>

#include "packed_node.h"

namespace deftonnx {

// Epilogue of kernels/epilogue.cuh.
struct EpilogueArguments {
  int32_t curve, gated;
  float slope, offset, low, high;
  int32_t y_type;  // 0 float32, 1 float16, 2 bfloat16

  explicit EpilogueArguments(const PackedNode& node)
      : curve(node.activation.curve),
        gated(node.activation.gated),
        slope(node.activation.slope),
        offset(node.activation.offset),
        low(node.activation.low),
        high(node.activation.high),
        y_type(node.y_type == ElementType::kFloat     ? 0
               : node.y_type == ElementType::kFloat16 ? 1
                                                      : 2) {}
};

}  // namespace deftonnx
