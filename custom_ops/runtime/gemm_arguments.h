// The arguments of a launch, by address, and those that the kernels of several families share.
#pragma once

#include <cstdint>

#include "gemm_kernel.h"

namespace deftonnx {

inline int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A float type as kernels/epilogue.py and epilogue.cuh number them.
int32_t TypeCode(ElementType type);

// Whether kernels for few rows multiply the node's operands.
bool ServesFewRows(const GemmSpec& spec);

// Collects the addresses of a kernel's arguments in order. The values must live until the launch returns.
class Arguments {
 public:
  template <class T>
  void Add(const T& value) {
    pointers_[count_++] = const_cast<T*>(&value);
  }
  template <class T>
  void Add(const T&&) = delete;  // a temporary would be gone
  void** Pointers() { return pointers_; }

 private:
  void* pointers_[48];
  int count_ = 0;
};

// How a kernel unpacks deft8 codes; see kernels/decode.py.
struct Decoding {
  int32_t shift = 0;
  int32_t factor = 0;           // a bfloat16 power of two, twice
  float accumulator_scale = 1;  // what the decoded values are too small by

  static Decoding ToFloat32(int exponent_bits);  // the scale is multiplied in with each value
  static Decoding ToFloat16(int exponent_bits);
  static Decoding ToBfloat16(int exponent_bits);
  // Nothing for other formats than deft8.
  static Decoding ForTensorCores(const GemmSpec& spec);
};

// The arguments that a node fixes, in the kernels' order.
class NodeArguments {
 public:
  NodeArguments(const GemmNode& node, const Decoding& decoding);

  // Adds scale ... y_type of gemm_tensor_core.py, which gemm_few_rows.cpp's kernels take too.
  void Add(Arguments& arguments, const GemmCall& call, const int32_t& M) const;

 private:
  const GemmNode& node_;
  int32_t N_, K_, features_, padded_K_, block_shift_;
  Decoding decoding_;
  int32_t curve_, gated_, y_type_;
};

}  // namespace deftonnx
