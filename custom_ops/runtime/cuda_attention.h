// DeftAttention for the CUDA provider.
#pragma once

#include <vector>

#include "attention_op.h"
#include "attention_spec.h"
#include "cuda_driver.h"
#include "kernel_cache.h"

namespace deftonnx {

class CudaAttention {
 public:
  CudaAttention(const Ort& ort, const OrtKernelInfo* info, ElementType type, ElementType);
  CudaAttention(const CudaAttention&) = delete;
  ~CudaAttention();

  // Launches on ONNX Runtime's stream, without synchronisation. Safe in several threads at once.
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  struct Candidate {
    const AttentionImage* row;
    LazyKernel* kernel;
  };

  // The one that makes the most rows a block of those that leave no multiprocessor idle.
  const Candidate& For(int64_t heads, int64_t length) const;

  AttentionSpec spec_;
  const CudaDriver& driver_;
  int multiprocessors_;
  bool starts_early_;               // the kernels wait for those ahead of them themselves
  std::vector<Candidate> kernels_;  // of one file; those that make many rows first
  Ort ort_;
  OrtAllocator* scratch_ = nullptr;
};

}  // namespace deftonnx
