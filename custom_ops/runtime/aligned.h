// Operands of one run at addresses that kernels can read and write.
#pragma once

#include <cstdint>

#include "cuda_driver.h"
#include "ort_abi.h"

namespace deftonnx {

// Kernels load and store 16 bytes at a time. ONNX Runtime's own tensors lie at multiples of more, but a
// caller may bind a part of a tensor as an input or an output of the model.
inline bool IsAligned(const void* data) {
  constexpr uintptr_t kAlignment = 16;
  return reinterpret_cast<uintptr_t>(data) % kAlignment == 0;
}

// Where copies go, and what enqueues them.
struct Place {
  const CudaDriver& driver;
  OrtAllocator* allocator;
  CUstream stream;
};

// An operand that is read: where it is, or a copy if that is not aligned. May be null.
class AlignedInput {
 public:
  AlignedInput(const Place& place, const void* data, size_t bytes)
      : copy_(place.allocator, IsAligned(data) ? 0 : bytes), data_(IsAligned(data) ? data : copy_.data()) {
    if (data_ != data) place.driver.Copy(copy_.data(), data, bytes, place.stream);
  }
  const void* data() const { return data_; }

 private:
  Scratch copy_;
  const void* data_;
};

// An operand that is written, all of it; `Store` brings it where it belongs.
class AlignedOutput {
 public:
  AlignedOutput(const Place& place, void* data, size_t bytes)
      : place_(place), copy_(place.allocator, IsAligned(data) ? 0 : bytes), data_(data), bytes_(bytes) {}
  void* data() const { return IsAligned(data_) ? data_ : copy_.data(); }
  void Store() const {
    if (data() != data_) place_.driver.Copy(data_, data(), bytes_, place_.stream);
  }

 private:
  Place place_;
  Scratch copy_;
  void* data_;
  size_t bytes_;
};

}  // namespace deftonnx
