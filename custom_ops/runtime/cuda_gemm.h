// DeftGemm for the CUDA provider.
#pragma once

#include "device_buffer.h"
#include "gemm_kernel.h"
#include "kernel_choice.h"

namespace deftonnx {

// A weight written anew: see float16_weight.h.
struct NewWeight {
  DeviceBuffer codes, scale;
};

// What does not change between runs, of a node of that spec whose W is input `first`, with scale and bias
// behind it. The node reads `new_weight`, if there is one then. Throws InvalidNode and CudaError.
GemmNode ReadGemmNode(const Ort& ort, const OrtKernelInfo* info, const GemmSpec& spec,
                      std::shared_ptr<const NewWeight>& new_weight, size_t first = kInputWeight);

class CudaGemm {
 public:
  // Loads the kernels that may serve this node; Compute only chooses one and launches.
  CudaGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y);
  CudaGemm(const CudaGemm&) = delete;  // the kernels refer to node_
  ~CudaGemm();

  // Launches on ONNX Runtime's stream, without synchronisation. Safe in several threads at once.
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  Ort ort_;
  std::shared_ptr<const NewWeight> new_weight_;
  GemmNode node_;
  KernelChoice choice_;
  OrtAllocator* scratch_;
};

}  // namespace deftonnx
