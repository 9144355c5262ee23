// How kernels/hopper_windows.cuh reads X's windows, as the host tells it.
#pragma once

#include <cstdint>

#include "conv_kernel.h"

namespace deftonnx {

// Neighbouring channels of X at one tap.
struct WindowBlock {
  int32_t channel, tap;  // tap: offsets in pixels, rows << 16 | columns
};

// WindowGrid and Windows of kernels/hopper_windows.cuh.
struct WindowGrid {
  int32_t outputs, rows, columns, row_stride, column_stride, row_start, column_start;

  WindowGrid(const ConvSpec& spec, const ConvShape& shape);
};
struct Windows {
  const void* blocks;
  int32_t block_count;
  WindowGrid grid;
};

// What a tensor map in im2col mode can say of an axis: corners of 8 bits, steps of at most 8.
bool MapTakes(const Axis& axis);

// X's map: `channels` of the windows of `pixels` pixels of Y at a time, swizzled over as many bytes.
TensorMap WindowMap(const ConvNode& node, const ConvCall& call, int channels, int pixels);

}  // namespace deftonnx
