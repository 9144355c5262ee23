// DeftMlp for the CUDA provider: all layers in one launch, or layer by layer where that is faster.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "device_buffer.h"
#include "kernel_cache.h"
#include "kernel_image.h"
#include "mlp_layers.h"
#include "mlp_spec.h"

namespace deftonnx {

struct MlpImage {
  KernelImage image;  // its shared_bytes: the most that a block may have
  ElementType type;
  int rows;  // of X that a cluster takes; 0: the kernel rounds float32 X alone (x, y, count of int64)
  int ring;  // steps of weights that a warp keeps in shared memory
};

extern const ImageTable<MlpImage> kMlpImages;

// How layers are shared out among the blocks of a cluster and their warps.
struct MlpShape {
  int cluster;   // blocks: a power of two
  int warps;     // of a block, that multiply
  int width[2];  // features that the two buffers of input hold, which alternate
};

class CudaMlp {
 public:
  CudaMlp(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y);
  CudaMlp(const CudaMlp&) = delete;
  ~CudaMlp();

  // Launches on ONNX Runtime's stream, without synchronisation. Safe in several threads at once.
  void Compute(const Ort& ort, OrtKernelContext* context) const;

 private:
  struct Candidate {
    const MlpImage* row;
    LazyKernel* kernel;
    unsigned shared_bytes;
  };
  // Those that shape_ leaves shared memory for.
  void FindKernels(CUdevice device, int architecture);
  void MakeConstants(const Ort& ort, const OrtKernelInfo* info);
  // The estimated time of all layers in one launch, for M rows.
  double Nanoseconds(const Candidate& candidate, int64_t M) const;
  // The kernel of least time, or null where layer by layer takes less.
  const Candidate* For(int64_t M) const;
  void Launch(const Candidate& chosen, int64_t M, const void* x, void* y, CUstream stream) const;

  Ort ort_;
  MlpSpec spec_;
  const CudaDriver& driver_;
  int multiprocessors_;
  MlpShape shape_;
  std::vector<Candidate> kernels_;  // of fewer rows first
  DeviceBuffer stream_, layers_, starts_;
  std::unique_ptr<MlpLayers> apart_;
  mutable std::atomic<uint64_t> last_{0};  // M and index of the last choice: a node mostly sees one M
  OrtAllocator* scratch_;
};

}  // namespace deftonnx
