#include "hopper_problem.h"

#include <algorithm>

#include "gemm_arguments.h"

namespace deftonnx {
namespace {

constexpr int kVector = 8;  // elements of Y that are stored together
// Rows beyond an operand that take no longer than another box in every K step would, and of the least box
// worth having.
constexpr int kCheapRows = 16, kLeastBox = 32;

// Parts of the end of a tile with a clamp alone: with a curve in registers, or with a residual or another
// end.
constexpr double kCurvedEnd = 1.25, kCostlyEnd = 2.5;

// Whether a node but for its residual can be finished in registers.
bool CanEndInRegisters(const PackedNode& node, ElementType type) {
  const Activation& activation = node.activation;
  if (node.y_type != type) return false;
  switch (activation.curve) {
    case Activation::kLinear: return !activation.gated;
    case Activation::kSigmoid: return true;
    case Activation::kErf: return activation.gated && activation.slope == 0.5f && activation.offset == 0;
    case Activation::kSlopes: break;
  }
  return false;
}

}  // namespace

HopperProblem::HopperProblem(const PackedNode& node, const void* scales, const void* biases)
    : HopperProblem{} {
  scale = scales;
  bias = biases;
  N = static_cast<int32_t>(node.N);
  curve = node.activation.curve;
  gated = node.activation.gated;
  slope = node.activation.slope;
  offset = node.activation.offset;
  low = node.activation.low;
  high = node.activation.high;
  y_type = TypeCode(node.y_type);
}

void HopperProblem::SetOutput(const PackedNode& node, const CudaDriver& driver, int64_t rows, void* to,
                              const void* added, bool boxes, int box_rows) {
  M = static_cast<int32_t>(rows);
  y_start = to;
  residual = added;
  vectors = node.N % kVector == 0;
  by_box = vectors && boxes;
  if (!by_box) return;
  const int type = node.y_type == ElementType::kFloat16 ? kMapFloat16 : kMapBfloat16;
  y = driver.EncodeMatrix(to, type, 2, rows, node.N, node.N, box_rows, 64, SwizzleOf(128));
}

int BoxRows(int64_t rows, int tile) {
  if (rows <= tile) return static_cast<int>(rows);
  const int last = static_cast<int>(rows % tile);
  if (last == 0) return tile;
  int box = tile;
  while (box > std::max(kLeastBox, tile / 4) && box - last > kCheapRows) box /= 2;
  return box;
}

bool EndsInRegisters(const PackedNode& node, ElementType type) {
  return !node.has_residual && CanEndInRegisters(node, type);
}

bool EndsInBoxes(const PackedNode& node, ElementType type) {
  if (node.has_residual && node.activation.curve != Activation::kLinear) return false;
  return CanEndInRegisters(node, type);
}

double EndFactor(const PackedNode& node, ElementType type) {
  if (!node.has_residual && node.activation.curve == Activation::kLinear) return 1;
  return EndsInRegisters(node, type) ? kCurvedEnd : kCostlyEnd;
}

}  // namespace deftonnx
