// Kernels of kernels/round_rows.cu: X's rows rounded to FP8, for nodes of format fp8.
#pragma once

#include "gemm_kernel.h"
#include "kernel_cache.h"

namespace deftonnx {

enum class Rounded { kCodes, kBfloat16 };

struct RoundRowsImage {
  KernelImage image;
  ElementType x_type;
  Rounded to;
};

extern const ImageTable<RoundRowsImage> kRoundRowsImages;

// Rounds the X of a node into scratch memory.
class RowRounder {
 public:
  // Throws InvalidNode if there is no kernel: see Exists.
  RowRounder(const GemmNode& node, Rounded to);

  // Whether there is a kernel for the node's GPU.
  static bool Exists(const GemmNode& node, Rounded to);

  // Scratch memory for M rows, a multiple of 256 bytes.
  size_t Bytes(int64_t M) const;
  // Where in it a row's power of two is, behind the codes.
  size_t PowersAt(int64_t M) const;

  // The estimated time for M rows.
  double Nanoseconds(int64_t M) const;

  // Launches on call.stream: values, and powers if codes, at the start of call.scratch.
  void Launch(const GemmCall& call) const;

 private:
  const GemmNode& node_;
  Rounded to_;
  const RoundRowsImage* row_;
  LazyKernel* kernel_;
};

}  // namespace deftonnx
