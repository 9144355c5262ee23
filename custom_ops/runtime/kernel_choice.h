// Which kernel multiplies which shape.
#pragma once

#include <atomic>
#include <cstdint>

#include "gemm_kernel.h"

namespace deftonnx {

class KernelChoice {
 public:
  // Asks every family for the kernels that can serve `node`. Throws InvalidNode if there is none.
  explicit KernelChoice(const GemmNode& node);

  // The kernel of least estimated time. Thread-safe. Throws InvalidNode if none takes M rows.
  const GemmKernel& For(int64_t M) const;

 private:
  const GemmNode& node_;
  GemmKernels kernels_;
  mutable std::atomic<uint64_t> last_{0};  // M and index of the last choice: a node mostly sees one M
};

}  // namespace deftonnx
