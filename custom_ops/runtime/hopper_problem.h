// The argument of the kernels on kernels/hopper_work.cuh, and what of it a node fixes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gemm_kernel.h"

namespace deftonnx {

// Problem of kernels/hopper_work.cuh.
struct HopperProblem {
  TensorMap x, w, y;
  const void* scale;
  const void* bias;
  const void* residual;
  void* y_start;
  int32_t M, N, vectors;
  int32_t curve, gated;
  float slope, offset, low, high;
  int32_t y_type;
  const void* kept;
  int32_t K, features, block_shift, box_columns, pair, splits, group, by_box, x_box, w_box;

  HopperProblem() = default;
  // With N and the activation of `node`; scale and bias in device memory.
  HopperProblem(const PackedNode& node, const void* scale, const void* bias);
  explicit HopperProblem(const GemmNode& node) : HopperProblem(node.spec, node.scale, node.bias) {}

  // Sets what the end of a tile needs to know of `call`; boxes: Y may leave in boxes of
  // `box_rows` rows and 64 columns.
  void SetOutput(const GemmNode& node, const GemmCall& call, bool boxes, int box_rows = 16) {
    SetOutput(node.spec, node.driver, call.M, call.y, call.residual, boxes, box_rows);
  }
  void SetOutput(const PackedNode& node, const CudaDriver& driver, int64_t rows, void* to, const void* added,
                 bool boxes, int box_rows = 16);
};
static_assert(sizeof(HopperProblem) == 512 && offsetof(HopperProblem, kept) == 456 &&
              offsetof(HopperProblem, x_box) == 496);

// The driver's enumerators for the elements of tensor maps.
constexpr int kMapUint8 = 0, kMapFloat16 = 6, kMapBfloat16 = 9;

// The driver's enumerator for the swizzle of rows of so many bytes.
inline int SwizzleOf(int row_bytes) {
  return row_bytes == 128 ? 3 : row_bytes == 64 ? 2 : row_bytes == 32 ? 1 : 0;
}

// Rows of the boxes in which an operand of `rows` rows is loaded for tiles of `tile` rows: a part of a tile,
// so that no row of a whole one is loaded twice, and so that none reaches beyond the operand, or not far:
// load_rows of kernels/hopper_loads.cuh.
int BoxRows(int64_t rows, int tile);

// Whether a node's Y of type `type` can be finished in registers and leave in boxes: Finish of
// kernels/hopper_epilogue.cuh.
bool EndsInRegisters(const PackedNode& node, ElementType type);

// The same for kernels that take a residual there: kernels/hopper_residual.cuh.
bool EndsInBoxes(const PackedNode& node, ElementType type);

// How many times as long as with a clamp alone the end of a tile takes, for estimates.
double EndFactor(const PackedNode& node, ElementType type);

}  // namespace deftonnx
