// What a DeftPool node asks for (deftonnx/formats/pool_function.py), checked once when the session is made.
#pragma once

#include "window.h"

namespace deftonnx {

enum class PoolKind {
  kMax,
  kAverage,        // of the pixels inside the image
  kAveragePadded,  // of those inside the padded image
  kNormalise       // x / (bias + alpha * mean of squares)^beta
};

struct PoolSpec : OperatorNode {
  PoolKind kind;
  ElementType type;
  int64_t image_axes;  // of X: 1 or 2
  Axis rows, columns;  // a kernel of 0: the whole axis
  bool ceil_mode;
  int64_t size;  // kNormalise: odd; channels whose squares are averaged, 1 if the window is of the image
  float alpha, beta, bias;
};

// Reads and checks the node's attributes. Throws InvalidNode.
PoolSpec ReadPoolSpec(const Ort& ort, const OrtKernelInfo* info, ElementType type);

// One run: the images, and the window with the whole axes' sizes filled in.
struct PoolCall {
  int64_t batch, in_rows, in_columns, out_rows, out_columns, channels;
  Axis rows, columns;
  const void* x;

  int64_t Pixels() const { return batch * out_rows * out_columns; }
  int64_t Taps() const { return rows.kernel * columns.kernel; }
};

// Reads X, checks its shape against the node, and makes the shape of Y. Throws InvalidNode.
PoolCall ReadPoolCall(const PoolSpec& spec, const Ort& ort, const OrtKernelContext* context,
                      std::vector<int64_t>* y_shape);

}  // namespace deftonnx
