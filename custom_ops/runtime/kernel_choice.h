// Which kernel multiplies which shape.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "gemm_kernel.h"
#include "measured_times.h"

namespace deftonnx {

class KernelChoice {
 public:
  // Asks every family for the kernels that can serve `node`. Their estimates are corrected by `measured`, if
  // that is not null. Throws InvalidNode if there is none.
  explicit KernelChoice(const GemmNode& node, std::shared_ptr<const MeasuredTimes> measured = nullptr);

  // The kernel of least time. Thread-safe. Throws InvalidNode if none takes M rows.
  const GemmKernel& For(int64_t M) const;

  const GemmKernels& Kernels() const { return kernels_; }

  // The time of a kernel for M rows in nanoseconds: its own estimate, corrected; or kRefused.
  double Nanoseconds(const GemmKernel& kernel, int64_t M) const;

 private:
  // Appends the kernels that multiply an unpacked copy of the weight, if it is worth its memory.
  void AddUnpacked();
  bool IsWorthACopy(const GemmKernels& unpacked) const;
  // The time of the fastest of `kernels`.
  double Least(const GemmKernels& kernels, int64_t M) const;

  const GemmNode& node_;
  std::shared_ptr<const MeasuredTimes> measured_;
  GemmKernels kernels_;
  mutable std::atomic<uint64_t> last_{0};  // M and index of the last choice: a node mostly sees one M
};

}  // namespace deftonnx
