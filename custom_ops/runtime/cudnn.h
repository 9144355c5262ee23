// The part of cuDNN's graph (backend) API that the library uses, found at run time where it is there: ONNX
// Runtime's CUDA provider uses cuDNN itself, so it is in the process or on the library path wherever
// convolutions matter. Numbers are those of cuDNN 9's headers, which cuDNN keeps.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "error.h"

namespace deftonnx::cudnn {

enum DescriptorType : int {
  kPointwise = 0,
  kConvolution = 1,
  kEngine = 2,
  kEngineConfig = 3,
  kHeuristics = 4,
  kPlan = 5,
  kOperationConvolution = 10,
  kOperationPointwise = 13,
  kOperationGraph = 15,
  kVariantPack = 16,
  kTensor = 17,
};

enum ValueType : int {
  kHandleValue = 0,
  kDataTypeValue = 1,
  kBooleanValue = 2,
  kInt64Value = 3,
  kFloatValue = 4,
  kDoubleValue = 5,
  kPointerValue = 6,
  kConvolutionModeValue = 7,
  kHeuristicModeValue = 8,
  kNumericalNoteValue = 11,
  kPointwiseModeValue = 14,
  kDescriptorValue = 15,
};

enum DataType : int { kFloat = 0, kHalf = 2, kBfloat16 = 9 };

// A failed call; where cuDNN does not support something, that is expected.
struct Error : std::runtime_error {
  explicit Error(const std::string& what, bool passes = false) : runtime_error(what), passes(passes) {}
  bool passes;  // for want of memory: another time the call may not fail
};

// cuDNN's functions and the handles of each device. Never unloaded.
class Library {
 public:
  // Null if there is no usable cuDNN.
  static const Library* Find();

  struct Functions;
  const Functions& functions() const { return *functions_; }

  // A handle of the current device, made at first use: number 0 runs plans, and each of the threads that make
  // plans at a time has one. Throws Error.
  void* Handle(CUdevice device, size_t number = 0) const;

 private:
  const Functions* functions_ = nullptr;
};

// A backend descriptor. Every call throws Error if cuDNN refuses.
class Descriptor {
 public:
  Descriptor(const Library& library, DescriptorType type);
  Descriptor(Descriptor&& other) noexcept : library_(other.library_), value_(other.value_) {
    other.value_ = nullptr;
  }
  Descriptor(const Descriptor&) = delete;
  ~Descriptor();

  void* value() const { return value_; }
  Descriptor& Set(int attribute, ValueType type, int64_t count, const void* values);
  Descriptor& SetInt(int attribute, int64_t value) { return Set(attribute, kInt64Value, 1, &value); }
  Descriptor& SetInts(int attribute, const std::vector<int64_t>& values) {
    return Set(attribute, kInt64Value, static_cast<int64_t>(values.size()), values.data());
  }
  Descriptor& SetEnum(int attribute, ValueType type, int value) { return Set(attribute, type, 1, &value); }
  Descriptor& SetDescriptor(int attribute, const Descriptor& value) {
    return Set(attribute, kDescriptorValue, 1, &value.value_);
  }
  void Finalize();
  // Reads up to `most` values; returns how many there are.
  int64_t Get(int attribute, ValueType type, int64_t most, void* values) const;

 private:
  const Library* library_;
  void* value_ = nullptr;
};

// Runs a finished plan on `stream`. Thread-safe.
void Execute(const Library& library, void* handle, const Descriptor& plan, const Descriptor& variant_pack,
             CUstream stream);

}  // namespace deftonnx::cudnn
