// A convolution with its fused end as a cuDNN operation graph.
#pragma once

#include <memory>
#include <vector>

#include "conv_spec.h"
#include "cudnn.h"

namespace deftonnx::cudnn {

// Whether cuDNN has that activation.
bool Knows(const Activation& activation);

// An operation graph and the descriptors that it refers to.
struct ConvGraph {
  std::vector<std::unique_ptr<Descriptor>> parts;
  Descriptor graph;
};

// y = activation(conv * scale + bias + residual) for X, W, residual and Y of the node's 16-bit type, W (N,
// taps, channels of a group) and float32 arithmetic; `scaled` is whether there is a scale. Tensors are called
// as TensorId of cudnn_attributes.h says. Throws Error if cuDNN does not know such a graph.
ConvGraph BuildConvGraph(const Library& library, void* handle, const ConvSpec& spec, const ConvShape& shape,
                         bool scaled);

}  // namespace deftonnx::cudnn
