// What the CPU kernels share: rows of float32 times an unpacked weight, and the fused end. They are there so
// that a session on the CPU runs with the library registered too: ONNX Runtime ignores the function body of
// an operator whose schema it knows. The weight is unpacked once, to float32.
#pragma once

#include <functional>
#include <vector>

#include "packed_node.h"

namespace deftonnx {

class CpuPacked {
 public:
  // W's outputs are split into that many groups, each with rows of its own. W is input `first`, scale and
  // bias follow. `node` must live as long.
  CpuPacked(const Ort& ort, const OrtKernelInfo* info, const PackedNode& node, int64_t groups,
            size_t first = kInputWeight);

  // The K features of a group's row m as float32.
  using ReadRow = std::function<void(int64_t group, int64_t m, float* row)>;

  // y (M, N) = activation(rows · W + bias + residual) on the session's threads; residual may be null.
  void Multiply(const Ort& ort, OrtKernelContext* context, int64_t M, const ReadRow& read,
                const void* residual, void* y) const;

 private:
  void MultiplyRows(const Ort& ort, OrtKernelContext* context, int64_t group, int64_t first, int64_t rows,
                    const float* wide, const void* residual, void* y) const;
  void Finish(const void* residual, void* y, int64_t first_row, int64_t rows, int64_t group, int64_t panel,
              float* sums) const;

  const PackedNode& node_;
  int64_t groups_, outputs_, panels_;  // outputs and panels of a group
  std::vector<float> weight_;          // (groups, panels, K, 16), scaled
  std::vector<float> bias_;            // (groups, 16 panels), zeros behind the outputs
};

}  // namespace deftonnx
