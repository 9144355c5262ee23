// A convolution with its fused end as a cuDNN operation graph, and the plan that runs it.
#pragma once

#include <memory>

#include "conv_spec.h"
#include "cudnn.h"

namespace deftonnx::cudnn {

// The pointers of one run, all to device memory; those that the graph lacks are ignored.
struct ConvPointers {
  const void *x, *weight, *scale, *bias, *residual;
  void *y, *workspace;
};

class ConvPlan {
 public:
  // For X, W, residual and Y of the node's 16-bit type, W (N, taps, channels of a group) and float32
  // arithmetic: y = activation(conv * scale + bias + residual); `scaled` is whether there is a scale. Throws
  // Error if cuDNN has no deterministic kernel of full precision for it.
  ConvPlan(const Library& library, void* handle, const ConvSpec& spec, const ConvShape& shape, bool scaled);

  size_t WorkspaceBytes() const { return static_cast<size_t>(workspace_); }
  void Run(const ConvPointers& pointers, CUstream stream) const;

  // Whether cuDNN has that activation.
  static bool Knows(const Activation& activation);

 private:
  const Library& library_;
  void* handle_;
  bool scaled_, residual_;
  std::unique_ptr<Descriptor> plan_;
  int64_t workspace_ = 0;
};

// The plan that all nodes of the same convolution, fused end and shape share while one of them lives.
// Thread-safe. Throws Error.
std::shared_ptr<const ConvPlan> SharedConvPlan(const Library& library, void* handle, const ConvSpec& spec,
                                               const ConvShape& shape, bool scaled);

}  // namespace deftonnx::cudnn
