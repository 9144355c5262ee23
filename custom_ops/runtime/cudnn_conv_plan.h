// The plans that run a convolution with its fused end.
#pragma once

#include <memory>
#include <vector>

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
  ConvPlan(const Library& library, void* handle, Descriptor plan, bool scaled, bool residual);

  size_t WorkspaceBytes() const { return static_cast<size_t>(workspace_); }
  void Run(const ConvPointers& pointers, CUstream stream) const;

 private:
  const Library& library_;
  void* handle_;
  Descriptor plan_;
  bool scaled_, residual_;
  int64_t workspace_ = 0;
};

// What is asked of cuDNN; `scaled` is whether there is a scale.
struct ConvQuestion {
  ConvSpec spec;
  ConvShape shape;
  bool scaled;
  bool guess_more;  // for more than one plan
};

// What cuDNN guesses to be the fastest plans, best guess first, for X, W, residual and Y of the node's 16-bit
// type, W (N, taps, channels of a group) and float32 arithmetic: y = activation(conv * scale + bias +
// residual). Deterministic and of full precision; none if cuDNN cannot do it, null if it could not be asked,
// as for want of memory. All nodes of the same convolution, fused end and shape share them as long as the
// process lives. Thread-safe.
using ConvPlans = std::shared_ptr<const std::vector<ConvPlan>>;
ConvPlans FindConvPlans(const Library& library, const CudaDriver& driver, CUdevice device,
                        const ConvQuestion& question);

// Makes the plans of all questions, so that they need only be found. Making one takes cuDNN some tenths of a
// second: several threads do it, which have ended when this returns.
void MakeConvPlans(const Library& library, const CudaDriver& driver, CUdevice device,
                   const std::vector<ConvQuestion>& questions);

}  // namespace deftonnx::cudnn
