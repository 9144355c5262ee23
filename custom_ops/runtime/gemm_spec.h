// What a DeftGemm node asks for, checked once when the session is made.
#pragma once

#include <vector>

#include "packed_node.h"

namespace deftonnx {

struct GemmSpec : PackedNode {
  int64_t features;     // of X, of which K are multiplied
  int64_t rows = 0;     // of X, if its shape is known when the session is made
  bool unpacks = true;  // whether a copy of W in 16 bits may be kept: gemm_unpacked.h
};

// Whether Y is float32 and sums of so many features, left to a tensor core, would miss 1e-5: it cuts off
// where float32 addition rounds.
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
