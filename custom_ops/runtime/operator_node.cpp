#include "operator_node.h"

#include <iterator>
#include <limits>
#include <sstream>

#include "error.h"

namespace deftonnx {

void Refuse(const OperatorNode& node, const std::string& reason) {
  throw InvalidNode(std::string(node.op) + " node '" + node.node + "': " + node.part + reason);
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

AttributeReader::AttributeReader(const Ort& ort, const OrtKernelInfo* info, OperatorNode& node)
    : ort_(ort), info_(info), node_(node) {
  node.node = ort.NodeName(info);
}

template <class Read>
auto AttributeReader::Attribute(const char* name, Read read) const {
  try {
    return read(name);
  } catch (const OrtError&) {
    Refuse(node_, std::string("attribute '") + name + "' is missing or of the wrong type");
  }
}

int64_t AttributeReader::Integer(const char* name) const {
  return Attribute(name, [&](const char* n) { return ort_.AttributeInt(info_, n); });
}

std::vector<int64_t> AttributeReader::Integers(const char* name) const {
  return Attribute(name, [&](const char* n) { return ort_.AttributeInts(info_, n); });
}

std::optional<std::vector<int64_t>> AttributeReader::OptionalIntegers(const char* name) const {
  const std::optional<std::vector<int64_t>> values = ort_.OptionalAttributeInts(info_, name);
  // ONNX Runtime reads attributes of other types so
  if (values && values->empty())
    Refuse(node_, std::string("attribute '") + name + "' is no list of integers");
  return values;
}

float AttributeReader::Real(const char* name) const {
  return Attribute(name, [&](const char* n) { return ort_.AttributeFloat(info_, n); });
}

std::vector<float> AttributeReader::Reals(const char* name) const {
  return Attribute(name, [&](const char* n) { return ort_.AttributeFloats(info_, n); });
}

std::vector<std::string> AttributeReader::Words(const char* name) const {
  std::istringstream text(Text(name));
  return {std::istream_iterator<std::string>(text), {}};
}

std::string AttributeReader::Text(const char* name) const {
  return Attribute(name, [&](const char* n) { return ort_.AttributeString(info_, n); });
}

bool AttributeReader::CheckOutputType(ElementType x, ElementType y, const char* reason) const {
  const auto type = static_cast<ElementType>(Integer("output_type"));
  const bool widened = x == ElementType::kFloat && y == ElementType::kFloat && type == ElementType::kFloat16;
  if (type != y && !widened) Refuse(node_, std::string("output_type is not the type of ") + reason);
  return widened;
}

int64_t AttributeReader::Size(const char* name) const {
  const int64_t size = Integer(name);
  if (size < 1 || size > std::numeric_limits<int32_t>::max() - 1024) {
    Refuse(node_, std::string(name) + " = " + std::to_string(size) + " is out of range");
  }
  return size;
}

}  // namespace deftonnx
