// How a window, a filter or that of a pooling, slides over an image of one or two axes.
#pragma once

#include <cstdint>

#include "operator_node.h"

namespace deftonnx {

// Along one axis of the image. A one-dimensional image has one row.
struct Axis {
  int64_t kernel = 1, stride = 1, pad_begin = 0, pad_end = 0, dilation = 1;

  int64_t OutputSize(int64_t size) const {
    const int64_t room = size + pad_begin + pad_end - dilation * (kernel - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
  }
};

struct Window {
  int64_t image_axes;  // 1 or 2
  Axis rows, columns;
};

// Reads and checks kernel_shape, strides, pads and dilations. Sizes of a kernel are `least_kernel` or more.
Window ReadWindow(const AttributeReader& reader, const OperatorNode& node, int64_t least_kernel = 1);

}  // namespace deftonnx
