#include "hopper_problem.h"

#include "gemm_arguments.h"

namespace deftonnx {
namespace {

constexpr int kVector = 8;  // elements of Y that are stored together

bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

HopperProblem::HopperProblem(const GemmNode& node) : HopperProblem{} {
  const Activation& activation = node.spec.activation;
  scale = node.scale;
  bias = node.bias;
  N = static_cast<int32_t>(node.spec.N);
  curve = activation.curve;
  gated = activation.gated;
  slope = activation.slope;
  offset = activation.offset;
  low = activation.low;
  high = activation.high;
  y_type = TypeCode(node.spec.y_type);
}

void HopperProblem::SetOutput(const GemmNode& node, const GemmCall& call, bool boxes) {
  const GemmSpec& spec = node.spec;
  M = static_cast<int32_t>(call.M);
  y_start = call.y;
  residual = call.residual;
  vectors = spec.N % kVector == 0 && Aligned(call.y) && Aligned(call.residual);
  by_box = vectors && boxes;
  if (!by_box) return;
  const int type = spec.y_type == ElementType::kFloat16 ? kMapFloat16 : kMapBfloat16;
  y = node.driver.EncodeMatrix(call.y, type, 2, call.M, spec.N, spec.N, 16, 64, SwizzleOf(128));
}

bool EndsInRegisters(const GemmSpec& spec, const void* residual, ElementType type) {
  const Activation& activation = spec.activation;
  if (residual != nullptr || spec.y_type != type) return false;
  if (activation.curve == Activation::kLinear) return !activation.gated;
  return activation.curve == Activation::kSigmoid || activation.curve == Activation::kErf;
}

}  // namespace deftonnx
