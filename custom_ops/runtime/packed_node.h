// What the nodes of all packed operators have in common, and how their attributes and constant inputs are
// read.
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

struct PackedNode {
  const char* op = "";  // the operator's name
  std::string node;     // the node's name, for messages
  Format format;
  int exponent_bits = 0;  // of deft8
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

// Refuses a node: throws InvalidNode, naming it.
[[noreturn]] void Refuse(const PackedNode& node, const std::string& reason);

// The type of input W, kUndefined if it is no initializer.
ElementType WeightType(const Ort& ort, const OrtKernelInfo* info);

// Checks the scalar in the residual's place, of Y's type and in host memory. Throws InvalidNode if it is not
// 0.
void CheckZero(const PackedNode& node, const void* scalar);

// "(2, 3)"
std::string ShapeText(const std::vector<int64_t>& shape);

// Reads one node while its kernel is made. Everything that is wrong is refused.
class NodeReader {
 public:
  NodeReader(const Ort& ort, const OrtKernelInfo* info, PackedNode& node);

  int64_t Integer(const char* name) const;
  std::vector<int64_t> Integers(const char* name) const;
  float Real(const char* name) const;
  std::string Text(const char* name) const;
  int64_t Size(const char* name) const;  // an integer from 1 to nearly 2^31

  // Reads and checks what all packed operators have: layout, format, K, N, block, activation, types, kernel.
  void ReadPacked() const;

  // Checks the shapes of W, scale, bias and of `blocks` kept ones.
  void CheckConstants(int64_t blocks) const;

 private:
  template <class Read>
  auto Attribute(const char* name, Read read) const;
  Tensor Constant(size_t index, const char* name) const;
  void CheckConstant(size_t index, const char* name, const std::vector<int64_t>& shape) const;
  void SetFormat(const std::string& name) const;
  void SetActivation() const;

  const Ort& ort_;
  const OrtKernelInfo* info_;
  PackedNode& node_;
};

}  // namespace deftonnx
