// Device memory that a kernel owns, or borrows, as long as its session.
#pragma once

#include <array>
#include <utility>
#include <vector>

#include "cuda_driver.h"

namespace deftonnx {

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // A copy of `values`, null if there are none. Throws CudaError.
  template <class T>
  DeviceBuffer(const CudaDriver& driver, const std::vector<T>& values) {
    if (values.empty()) return;
    DeviceBuffer buffer = Uninitialised(driver, values.size() * sizeof(T));
    driver.CopyToDevice(buffer.data_, values.data(), values.size() * sizeof(T));
    driver.Synchronize(nullptr);
    *this = std::move(buffer);
  }
  // Of so many bytes, at least one. Throws CudaError.
  static DeviceBuffer Uninitialised(const CudaDriver& driver, size_t bytes) {
    DeviceBuffer buffer;
    buffer.driver_ = &driver;
    buffer.context_ = driver.CurrentContext();
    buffer.data_ = driver.Allocate(bytes);
    return buffer;
  }
  // Refers to memory of somebody else's, who keeps it.
  static DeviceBuffer Borrowed(const void* data) {
    DeviceBuffer buffer;
    buffer.data_ = const_cast<void*>(data);
    return buffer;
  }
  // Copies of several arrays in one allocation, which the first of them owns: it must have values. An
  // allocation and a copy take longer than what small arrays hold, so that those behind the first, which may
  // be large, are copied in one. Throws CudaError.
  template <class First, class... T>
  static std::array<DeviceBuffer, 1 + sizeof...(T)> Together(const CudaDriver& driver,
                                                             const std::vector<First>& first,
                                                             const std::vector<T>&... others) {
    constexpr size_t kAlignment = 256;
    const auto aligned = [](size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
    const size_t first_bytes = first.size() * sizeof(First);
    std::vector<char> behind;
    std::array<size_t, sizeof...(T)> places;
    size_t count = 0;
    const auto append = [&](const auto& array) {
      places[count++] = aligned(first_bytes) + behind.size();
      const auto* begin = reinterpret_cast<const char*>(array.data());
      behind.insert(behind.end(), begin, begin + array.size() * sizeof(array[0]));
      behind.resize(aligned(behind.size()));
    };
    (append(others), ...);
    std::array<DeviceBuffer, 1 + sizeof...(T)> buffers;
    buffers[0] = Uninitialised(driver, aligned(first_bytes) + behind.size());
    auto* data = static_cast<char*>(buffers[0].data());
    driver.CopyToDevice(data, first.data(), first_bytes);
    driver.CopyToDevice(data + aligned(first_bytes), behind.data(), behind.size());
    driver.Synchronize(nullptr);
    for (size_t i = 0; i < places.size(); ++i) buffers[i + 1] = Borrowed(data + places[i]);
    return buffers;
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : driver_(other.driver_), context_(other.context_), data_(other.data_) {
    other.data_ = nullptr;
  }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(context_, other.context_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr && driver_ != nullptr) driver_->Free(data_, context_);
  }
  const void* data() const { return data_; }
  void* data() { return data_; }

 private:
  const CudaDriver* driver_ = nullptr;
  CUcontext context_ = nullptr;  // that data_ was allocated in
  void* data_ = nullptr;
};

}  // namespace deftonnx
