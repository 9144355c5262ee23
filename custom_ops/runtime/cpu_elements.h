// Elements of float32, float16 and bfloat16 tensors on the CPU, and loops over them on the session's threads.
#pragma once

#include <exception>
#include <mutex>

#include "float_bits.h"
#include "ort_abi.h"

namespace deftonnx {

inline float LoadFloat(const void* data, ElementType type, int64_t index) {
  if (type == ElementType::kFloat16) return HalfToFloat(static_cast<const uint16_t*>(data)[index]);
  if (type == ElementType::kBfloat16) return Bfloat16ToFloat(static_cast<const uint16_t*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

inline void StoreFloat(void* data, ElementType type, int64_t index, float value) {
  if (type == ElementType::kFloat16) {
    static_cast<uint16_t*>(data)[index] = FloatToHalf(value);
  } else if (type == ElementType::kBfloat16) {
    static_cast<uint16_t*>(data)[index] = FloatToBfloat16(value);
  } else {
    static_cast<float*>(data)[index] = value;
  }
}

// Runs task(0) ... task(count - 1) on the session's threads. What one of them throws is thrown here, when all
// have run: out of a thread of ONNX Runtime's it would end the process.
template <class Task>
void InParallel(const Ort& ort, const OrtKernelContext* context, size_t count, const Task& task) {
  struct State {
    const Task& task;
    std::mutex mutex;
    std::exception_ptr thrown;
  } state{task, {}, nullptr};
  const auto call = [](void* of_all, size_t i) {
    auto& all = *static_cast<State*>(of_all);
    try {
      all.task(i);
    } catch (...) {
      std::lock_guard<std::mutex> lock(all.mutex);
      all.thrown = std::current_exception();
    }
  };
  ort.ParallelFor(context, call, count, &state);
  if (state.thrown != nullptr) std::rethrow_exception(state.thrown);
}

}  // namespace deftonnx
