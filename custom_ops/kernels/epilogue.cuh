// The fused end of a kernel for CUDA C++; the same curves and type codes as epilogue.py.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct Epilogue {
  int curve, gated;
  float slope, offset, low, high;
  int y_type;  // 0 float32, 1 float16, 2 bfloat16
};

__device__ inline float activate(const Epilogue& e, float z) {
  float g;
  if (e.curve == 0) {
    const float line = z * e.slope + e.offset;
    g = line < e.low ? e.low : line > e.high ? e.high : line;  // NaN passes
  } else if (e.curve == 1) {
    g = e.slope / (1.0f + __expf(-z * (e.low + e.high * z * z))) + e.offset;
  } else if (e.curve == 2) {
    g = e.slope * (1.0f + erff(z * 0.70710678f)) + e.offset;
  } else {
    g = z < 0.0f ? z * e.slope : z;
  }
  return e.gated ? z * g : g;
}

__device__ inline float load_float(const void* base, size_t index, int type) {
  if (type == 0) return static_cast<const float*>(base)[index];
  if (type == 1) return __half2float(static_cast<const __half*>(base)[index]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(base)[index]);
}

__device__ inline void store_float(void* base, size_t index, int type, float value) {
  if (type == 0) {
    static_cast<float*>(base)[index] = value;
  } else if (type == 1) {
    static_cast<__half*>(base)[index] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(base)[index] = __float2bfloat16_rn(value);
  }
}
