// Device memory that a kernel owns, or borrows, as long as its session.
#pragma once

#include <utility>
#include <vector>

#include "cuda_driver.h"

namespace deftonnx {

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // A copy of `values`, null if there are none. Throws CudaError.
  template <class T>
  DeviceBuffer(const CudaDriver& driver, const std::vector<T>& values) : driver_(&driver) {
    if (values.empty()) return;
    data_ = driver.Allocate(values.size() * sizeof(T));
    try {
      driver.CopyToDevice(data_, values.data(), values.size() * sizeof(T));
    } catch (...) {
      driver.Free(data_);
      throw;
    }
  }
  // Refers to memory of somebody else's, who keeps it.
  static DeviceBuffer Borrowed(const void* data) {
    DeviceBuffer buffer;
    buffer.data_ = const_cast<void*>(data);
    return buffer;
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept : driver_(other.driver_), data_(other.data_) {
    other.data_ = nullptr;
  }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr && driver_ != nullptr) driver_->Free(data_);
  }
  const void* data() const { return data_; }

 private:
  const CudaDriver* driver_ = nullptr;
  void* data_ = nullptr;
};

}  // namespace deftonnx
