// What the operator sees of its CUDA kernels: each says how long it would take for M rows, and launches.
//
// Kernels come in families, one .cpp file each (gemm_tensor_core.cpp, gemm_few_rows.cpp ...): the family is a
// function that appends its kernels able to serve a node, and kernel_choice.cpp lists the families.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "cuda_driver.h"
#include "gemm_spec.h"

namespace deftonnx {

// A DeftGemm node on one device: what does not change between runs. Lives longer than its kernels.
struct GemmNode {
  GemmSpec spec;
  const CudaDriver& driver;
  CUdevice device;
  int capability;  // compute capability, 90 for 9.0
  int multiprocessors;
  // in device memory, where ONNX Runtime keeps the initializers
  const void* weight;
  const void* scale;
  const void* bias;
  const void* kept;                  // null if all features are kept
  std::vector<int32_t> kept_blocks;  // the same on the host

  // Whether a kernel of that name is to be prepared: the node may ask for a single one.
  bool Admits(const char* kernel) const { return spec.kernel.empty() || spec.kernel == kernel; }
};

// One run of a node. Pointers are to device memory, at multiples of 16 bytes: aligned.h.
struct GemmCall {
  int64_t M;  // 1 to kMostRows
  const void* x;
  const void* residual;  // null if there is none
  void* y;
  void* scratch;  // ScratchBytes(M), 256-byte aligned; null if that is 0
  CUstream stream;
};

constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max() - 1024;
constexpr double kRefused = std::numeric_limits<double>::infinity();

class GemmKernel {
 public:
  virtual ~GemmKernel() = default;

  virtual const char* Name() const = 0;
  // The name in tables of measured times.
  virtual const char* MeasuredAs() const { return Name(); }

  // The estimated time for M rows, or kRefused. Of two kernels the one of less time runs.
  virtual double Nanoseconds(int64_t M) const = 0;

  virtual size_t ScratchBytes(int64_t) const { return 0; }

  // Launches on call.stream, one kernel or several: no allocation, no synchronisation. Safe in several
  // threads at once. Throws CudaError.
  virtual void Launch(const GemmCall& call) const = 0;
};

using GemmKernels = std::vector<std::unique_ptr<GemmKernel>>;

// Appends the family's kernels that can serve `node`. Throws CudaError.
using GemmFamily = void (*)(const GemmNode& node, GemmKernels& kernels);

}  // namespace deftonnx
