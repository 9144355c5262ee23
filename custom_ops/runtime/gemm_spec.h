// What a DeftGemm node asks for, checked once when the session is made.
#pragma once

#include <string>
#include <vector>

#include "ort_abi.h"

namespace deftonnx {

enum class Format { kFloat32, kHalf, kDeft16, kDeft16q, kDeft8 };

// Y = gated ? z * g(z) : g(z); the curves and their parameters are those of kernels/epilogue.py.
struct Activation {
  enum Curve : int { kLinear = 0, kSigmoid = 1, kErf = 2, kSlopes = 3 };
  Curve curve;
  bool gated;
  float slope, offset, low, high;
};

struct GemmSpec {
  std::string node;  // for messages
  Format format;
  int exponent_bits = 0;  // of deft8
  int64_t features, K, N;
  int64_t padded_K;   // K rounded up to 16
  int64_t block = 0;  // features of a kept block, 0: all features are kept
  int block_shift = 0;
  Activation activation;
  bool has_residual = false;
  bool has_zero = false;  // a scalar 0 stands in the residual's place, to tell the type of Y
  ElementType x_type, weight_type, y_type;
  std::string kernel;  // the one kernel to use, or empty: choose by shape
};

// Whether Y is float32 and sums of so many features, left to a tensor core, would miss 1e-5: it cuts off
// where float32 addition rounds. Measured on Hopper, 1.2e-9 of Y per feature that is summed in one go.
inline bool NeedsSumsApart(const GemmSpec& spec, int64_t features_in_one_go) {
  return spec.y_type == ElementType::kFloat && features_in_one_go > 4096;
}

// Reads and checks the node's attributes and the shapes of its constant inputs. Throws InvalidNode.
GemmSpec ReadGemmSpec(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y);

// The attributes alone, of a node whose constant inputs are not there. Throws InvalidNode.
GemmSpec ReadGemmAttributes(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType weight,
                            ElementType y);

// Checks the kept block indices against spec.features and spec.K. Throws InvalidNode.
void CheckKept(const GemmSpec& spec, const int32_t* kept, size_t count);

// Checks the scalar in the residual's place, of Y's type. Throws InvalidNode if it is not 0.
void CheckZero(const GemmSpec& spec, const void* scalar);

// The inputs of one run that are not constant.
struct GemmInputs {
  int64_t M;  // rows of X
  const void* x;
  const void* residual;  // null if there is none
  std::vector<int64_t> y_shape;
};

// Reads them and checks their shapes against the node. Throws InvalidNode.
GemmInputs ReadInputs(const GemmSpec& spec, const Ort& ort, const OrtKernelContext* context);

}  // namespace deftonnx
