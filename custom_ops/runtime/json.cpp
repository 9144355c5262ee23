#include "json.h"

#include <cctype>
#include <cstdlib>
#include <stdexcept>

namespace deftonnx {
namespace {

constexpr int kDeepest = 32;  // nested values: the parser recurses

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Json Document() {
    Json value = Value(0);
    Skip();
    if (at_ != text_.size()) Fail("more text after the value");
    return value;
  }

 private:
  [[noreturn]] void Fail(const std::string& what) const {
    throw std::runtime_error(what + " at character " + std::to_string(at_));
  }

  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void Skip() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }

  bool Take(char expected) {
    Skip();
    if (Peek() != expected) return false;
    ++at_;
    return true;
  }

  void Need(char expected) {
    if (!Take(expected)) Fail(std::string("'") + expected + "' expected");
  }

  Json Value(int depth) {
    if (depth > kDeepest) Fail("values nested too deeply");
    Skip();
    switch (Peek()) {
      case '{': return Object(depth);
      case '[': return Array(depth);
      case '"': return String();
      case 't': return Word("true", Json::kBoolean, 1);
      case 'f': return Word("false", Json::kBoolean, 0);
      case 'n': return Word("null", Json::kNull, 0);
      default: return Number();
    }
  }

  Json Object(int depth) {
    Json value;
    value.kind = Json::kObject;
    Need('{');
    if (Take('}')) return value;
    do {
      Skip();
      const std::string name = String().text;
      Need(':');
      value.members[name] = Value(depth + 1);
    } while (Take(','));
    Need('}');
    return value;
  }

  Json Array(int depth) {
    Json value;
    value.kind = Json::kArray;
    Need('[');
    if (Take(']')) return value;
    do value.items.push_back(Value(depth + 1));
    while (Take(','));
    Need(']');
    return value;
  }

  // An escape stands for the character after it; that is all that names of kernels and devices need.
  Json String() {
    Json value;
    value.kind = Json::kString;
    Need('"');
    while (Peek() != '"') {
      if (Peek() == '\\') ++at_;
      if (at_ >= text_.size()) Fail("a string without end");
      value.text += text_[at_++];
    }
    ++at_;
    return value;
  }

  Json Word(const std::string& word, Json::Kind kind, double number) {
    if (text_.compare(at_, word.size(), word) != 0) Fail("unknown word");
    at_ += word.size();
    Json value;
    value.kind = kind;
    value.number = number;
    return value;
  }

  Json Number() {
    const char* start = text_.c_str() + at_;
    char* end = nullptr;
    Json value;
    value.kind = Json::kNumber;
    value.number = std::strtod(start, &end);
    if (end == start) Fail("a value expected");
    at_ += end - start;
    return value;
  }

  const std::string& text_;
  size_t at_ = 0;
};

}  // namespace

const Json& Json::Member(const std::string& name, Kind wanted) const {
  const auto found = members.find(name);
  if (found == members.end() || found->second.kind != wanted) {
    throw std::runtime_error("'" + name + "' is missing or of the wrong kind");
  }
  return found->second;
}

Json ParseJson(const std::string& text) { return Parser(text).Document(); }

}  // namespace deftonnx
