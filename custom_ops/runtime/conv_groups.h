// Groups of a convolution taken together, with zeros between them, so that tensor cores can multiply them.
#pragma once

#include "conv_kernel.h"

namespace deftonnx {

// The least number of groups that together have channels by the `channels` and outputs by the `outputs`, or 0
// if there is none.
int64_t GroupsTogether(const ConvSpec& spec, int64_t channels, int64_t outputs);

// The same convolution with `count` groups as one: W's rows are `count` times as long and mostly zero. All
// features must be kept.
ConvNode WithGroupsTogether(const ConvNode& node, int64_t count);

}  // namespace deftonnx
