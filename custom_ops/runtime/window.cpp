#include "window.h"

#include <string>
#include <vector>

namespace deftonnx {
namespace {

void CheckAxis(const OperatorNode& node, const Axis& axis, int64_t least_kernel) {
  constexpr int64_t kMost = 1 << 20;
  const bool positive = axis.kernel >= least_kernel && axis.stride > 0 && axis.dilation > 0;
  if (!positive || axis.kernel > kMost || axis.stride > kMost || axis.dilation > kMost) {
    Refuse(node, "kernel_shape, strides and dilations must be positive");
  }
  for (int64_t value : {axis.pad_begin, axis.pad_end}) {
    if (value < 0 || value > kMost) Refuse(node, "pads must not be negative");
  }
}

}  // namespace

Window ReadWindow(const AttributeReader& reader, const OperatorNode& node, int64_t least_kernel) {
  const std::vector<int64_t> kernel = reader.Integers("kernel_shape");
  const std::vector<int64_t> strides = reader.Integers("strides");
  const std::vector<int64_t> pads = reader.Integers("pads");
  const std::vector<int64_t> dilations = reader.Integers("dilations");
  const size_t axes = kernel.size();
  if (axes < 1 || axes > 2) Refuse(node, "kernel_shape must have one or two values");
  if (strides.size() != axes || dilations.size() != axes || pads.size() != 2 * axes) {
    Refuse(node,
           "strides, dilations and pads do not match the " + std::to_string(axes) + " axes of kernel_shape");
  }
  Window window{static_cast<int64_t>(axes), {}, {}};
  for (size_t i = 0; i < axes; ++i) {
    Axis& axis = i + 1 == axes ? window.columns : window.rows;
    axis = {kernel[i], strides[i], pads[i], pads[axes + i], dilations[i]};
    CheckAxis(node, axis, least_kernel);
  }
  return window;
}

}  // namespace deftonnx
