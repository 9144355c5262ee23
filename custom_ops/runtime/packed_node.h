// What the nodes of all packed operators have in common, and how their attributes and constant inputs are
// read.
#pragma once

#include <string>
#include <vector>

#include "operator_node.h"

namespace deftonnx {

enum class Format { kFloat32, kHalf, kDeft16, kDeft16q, kDeft8 };

// Y = gated ? z * g(z) : g(z); the curves and their parameters are those of kernels/epilogue.py.
struct Activation {
  enum Curve : int { kLinear = 0, kSigmoid = 1, kErf = 2, kSlopes = 3 };
  Curve curve;
  bool gated;
  float slope, offset, low, high;
};

// The inputs of every packed operator, in order.
enum PackedInput : size_t {
  kInputX,
  kInputWeight,
  kInputScale,
  kInputBias,
  kInputKept,
  kInputResidual,
  kPackedInputs
};

struct PackedNode : OperatorNode {
  Format format;
  int exponent_bits = 0;  // of deft8
  bool rounds_x = false;  // format fp8: deft8:4, and X rounded to the same values as it is multiplied
  int64_t K, N;           // of W
  int64_t padded_K;       // K rounded up to 16
  int64_t block = 0;      // features of a kept block, 0: all features are kept
  int block_shift = 0;
  Activation activation;
  bool has_residual = false;
  bool has_zero = false;  // a scalar 0 stands in the residual's place, to tell the type of Y
  ElementType x_type, weight_type, y_type;
  std::string kernel;  // the one kernel to use, or empty: choose by shape
};

// The type of input `index`, a weight, or kUndefined if it is no initializer.
ElementType WeightType(const Ort& ort, const OrtKernelInfo* info, size_t index = kInputWeight);

// Sets the node's format by its name and checks that weight_type, where it is known, is that of its codes.
// `x` is X's type: in a node that was widened to float32, see CheckOutputType, codes in float16 are float32
// too. Throws InvalidNode.
void SetFormat(PackedNode& node, const std::string& name, ElementType x);

// Sets the node's activation by its name and numbers. Throws InvalidNode.
void SetActivation(PackedNode& node, const std::string& name, float alpha, float beta);

// Sets the node's sizes.
void SetSizes(PackedNode& node, int64_t K, int64_t N);

// Refuses a layout that the library does not know.
void CheckLayout(const OperatorNode& node, int64_t layout);

// Checks that input `index` is an initializer of that shape. Throws InvalidNode.
void CheckConstant(const Ort& ort, const OrtKernelInfo* info, const OperatorNode& node, size_t index,
                   const char* name, const std::vector<int64_t>& shape);

// Checks the shapes of W, scale and bias, which are inputs `first` and those behind it. Throws InvalidNode.
void CheckWeight(const Ort& ort, const OrtKernelInfo* info, const PackedNode& node,
                 size_t first = kInputWeight);

// Checks the scalar in the residual's place, of Y's type and in host memory. Throws InvalidNode if it is not
// 0.
void CheckZero(const PackedNode& node, const void* scalar);

// Reads one node while its kernel is made. Everything that is wrong is refused.
class NodeReader : public AttributeReader {
 public:
  NodeReader(const Ort& ort, const OrtKernelInfo* info, PackedNode& node);

  // Reads and checks what all packed operators have: layout, format, K, N, block, activation, types, kernel.
  void ReadPacked() const;

  // Checks the shapes of W, scale, bias and of `blocks` kept ones.
  void CheckConstants(int64_t blocks) const;

 private:
  const Ort& ort_;
  const OrtKernelInfo* info_;
  PackedNode& node_;
};

}  // namespace deftonnx
