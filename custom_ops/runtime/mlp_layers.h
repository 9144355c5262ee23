// The layers of a DeftMlp node one after the other, by the kernels of DeftGemm: for widths that no kernel of
// the whole has room for, and for so many rows that a launch for each layer costs nothing.
#pragma once

#include <deque>
#include <memory>

#include "cuda_gemm.h"
#include "kernel_cache.h"
#include "mlp_spec.h"

namespace deftonnx {

// The kernel that rounds count values of float32: (x, y, int64 count).
struct MlpRounding {
  LazyKernel* kernel;
  int threads;
  bool starts_early;
};

class MlpLayers {
 public:
  // Loads the kernels that may serve; `rounding` rounds X where it is float32. Throws InvalidNode if a layer
  // has none.
  MlpLayers(const Ort& ort, const OrtKernelInfo* info, const MlpSpec& spec, const MlpRounding& rounding);
  MlpLayers(const MlpLayers&) = delete;
  ~MlpLayers();

  // The estimated time for M rows.
  double Nanoseconds(int64_t M) const;

  // Launches for M > 0 rows of X. No synchronisation. Throws InvalidNode for more than kMostRows.
  void Launch(int64_t M, const void* x, void* y, CUstream stream) const;

 private:
  struct Layer {
    Layer(const Ort& ort, const OrtKernelInfo* info, const GemmSpec& spec, size_t input);
    std::shared_ptr<const NewWeight> new_weight;
    GemmNode node;
    KernelChoice choice;
  };

  // How many bytes at `scratch` X takes in the type between layers; and makes it there.
  size_t RoundedBytes(int64_t M) const;
  void Round(int64_t M, const void* x, void* rounded, CUstream stream) const;

  Ort ort_;
  const MlpRounding rounding_;
  bool rounds_;
  std::deque<Layer> layers_;  // the choices refer to the nodes
  OrtAllocator* scratch_;
};

}  // namespace deftonnx
