// What a DeftMlp node asks for, checked once when the session is made: deftonnx/formats/mlp_function.py.
#pragma once

#include <string>
#include <vector>

#include "gemm_spec.h"

namespace deftonnx {

struct MlpSpec : OperatorNode {
  ElementType type;            // of what is between two layers: float16 or bfloat16
  ElementType x_type, y_type;  // each the same, or float32; X is rounded to `type` as it is read
  std::vector<GemmSpec> layers;
  std::string kernel;  // the one kernel to use, or empty: choose by shape
};

// The input that is a scalar 0 of Y's type, for ONNX Runtime to tell that type by.
constexpr size_t kMlpInputZero = 1;

// The input W of a layer; its scale and its bias follow.
constexpr size_t MlpWeightInput(size_t layer) { return 2 + 3 * layer; }

// Reads and checks the node's attributes and its constant inputs. Throws InvalidNode.
MlpSpec ReadMlpSpec(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y);

// One run's X.
struct MlpInputs {
  int64_t M;  // rows of X
  const void* x;
  std::vector<int64_t> y_shape;
};

// Reads it and checks its shape against the node. Throws InvalidNode.
MlpInputs ReadMlpInputs(const MlpSpec& spec, const Ort& ort, const OrtKernelContext* context);

}  // namespace deftonnx
