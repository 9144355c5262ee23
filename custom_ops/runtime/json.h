// Just enough JSON to read a table that a user's own program wrote.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace deftonnx {

struct Json {
  enum Kind { kNull, kBoolean, kNumber, kString, kArray, kObject };
  Kind kind = kNull;
  double number = 0;  // of kNumber; 0 or 1 of kBoolean
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  // The member of an object. Throws std::runtime_error if there is none of that kind.
  const Json& Member(const std::string& name, Kind kind) const;
};

// Throws std::runtime_error, naming the position, if `text` is not one JSON value.
Json ParseJson(const std::string& text);

}  // namespace deftonnx
