// DeftConv for the CUDA provider.
#pragma once

#include <mutex>

#include "conv_kernel.h"

namespace deftonnx {

// The kernels of all families that can serve the node. Throws CudaError.
ConvKernels ConvKernelsFor(const ConvNode& node);

// Of kernels that estimate such times, those to measure, the least estimate first: the rest is not close to
// it, or there are enough. None if all refuse.
std::vector<size_t> MeasuredAmong(const std::vector<double>& times);

class CudaConv {
 public:
  // Loads the kernels that may serve this node; Compute only chooses one and launches.
  CudaConv(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y);
  CudaConv(const CudaConv&) = delete;  // the kernels refer to node_
  ~CudaConv();

  // Launches on ONNX Runtime's stream, without synchronisation. Safe in several threads at once.
  void Compute(const Ort& ort, OrtKernelContext* context);

 private:
  // The kernel for a call, by estimates and, at the first run of a shape, by measuring those that are close.
  ConvKernel& Choose(const ConvCall& call);
  size_t Measure(ConvCall call, const std::vector<size_t>& candidates, size_t guess) const;

  Ort ort_;
  ConvNode node_;
  ConvKernels kernels_;
  OrtAllocator* scratch_ = nullptr;
  std::mutex mutex_;
  std::vector<std::pair<ConvShape, ConvKernel*>> chosen_;
};

}  // namespace deftonnx
