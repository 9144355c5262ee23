// A node of any of the operators: its name, refusing it, and reading its attributes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace deftonnx {

struct OperatorNode {
  const char* op = "";  // the operator's name
  std::string node;     // the node's name, for messages
  std::string part;     // of the node, for messages: "layer 2: ", or empty for all of it
};

// Refuses a node: throws InvalidNode, naming it.
[[noreturn]] void Refuse(const OperatorNode& node, const std::string& reason);

// "(2, 3)"
std::string ShapeText(const std::vector<int64_t>& shape);

// Reads attributes while the kernel is made. One that is missing or of the wrong type is refused.
class AttributeReader {
 public:
  // Sets the name of `node`.
  AttributeReader(const Ort& ort, const OrtKernelInfo* info, OperatorNode& node);

  int64_t Integer(const char* name) const;
  std::vector<int64_t> Integers(const char* name) const;
  // Nothing if there is no such attribute. A list without values is refused.
  std::optional<std::vector<int64_t>> OptionalIntegers(const char* name) const;
  float Real(const char* name) const;
  std::vector<float> Reals(const char* name) const;
  std::string Text(const char* name) const;
  std::vector<std::string> Words(const char* name) const;  // of a text, parted by spaces
  int64_t Size(const char* name) const;                    // an integer from 1 to nearly 2^31
  // Refuses a node whose attribute output_type is not `y`, which `reason` tells. Between nodes that it has no
  // float16 kernels for, ONNX Runtime's CPU provider widens a node to float32, whatever its attributes say:
  // returns whether it has. What several such nodes read is then no initializer, but comes from a Cast.
  bool CheckOutputType(ElementType x, ElementType y, const char* reason) const;

 private:
  template <class Read>
  auto Attribute(const char* name, Read read) const;

  const Ort& ort_;
  const OrtKernelInfo* info_;
  const OperatorNode& node_;
};

}  // namespace deftonnx
