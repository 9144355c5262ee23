// The fused end of a kernel for CUDA C++; the same curves and type codes as epilogue.py.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct Epilogue {
  int curve, gated;
  float slope, offset, low, high;
  int y_type;  // 0 float32, 1 float16, 2 bfloat16
};

__device__ inline float reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// 2^x
__device__ inline float power_of_two(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

constexpr float kLog2E = 1.44269504f;

// erf to 1.5e-7 absolute (Abramowitz and Stegun 7.1.26); half the instructions of erff.
__device__ inline float error_function(float x) {
  const float t = reciprocal(fmaf(0.3275911f, fabsf(x), 1.0f));
  const float polynomial =
      t * fmaf(t, fmaf(t, fmaf(t, fmaf(t, 1.061405429f, -1.453152027f), 1.421413741f), -0.284496736f),
               0.254829592f);
  return copysignf(fmaf(-polynomial, power_of_two(-kLog2E * x * x), 1.0f), x);
}

__device__ inline float activate(const Epilogue& e, float z) {
  float g;
  if (e.curve == 0) {
    const float line = z * e.slope + e.offset;
    g = line < e.low ? e.low : line > e.high ? e.high : line;  // NaN passes
  } else if (e.curve == 1) {
    const float low = -kLog2E * e.low, high = -kLog2E * e.high;
    g = e.slope * reciprocal(1.0f + power_of_two(z * (low + high * z * z))) + e.offset;
  } else if (e.curve == 2) {
    g = e.slope * (1.0f + error_function(z * 0.70710678f)) + e.offset;
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

// Elements of COUNT neighbouring rows of a row-major matrix, of which the first `wanted` exist.
template <int COUNT>
struct Rows {
  size_t first;  // index of the first row's element
  int stride;    // elements of a row
  int wanted;
};

template <class T, int COUNT>
__device__ inline void add_rows_of(const T* base, const Rows<COUNT>& rows, float (&z)[COUNT]) {
  T values[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    values[i] = i < rows.wanted ? base[rows.first + static_cast<size_t>(i) * rows.stride] : T(0.0f);
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) z[i] += static_cast<float>(values[i]);
}

// z += the elements, of the type numbered `type`.
template <int COUNT>
__device__ inline void add_rows(const void* base, int type, const Rows<COUNT>& rows, float (&z)[COUNT]) {
  if (type == 0) {
    add_rows_of(static_cast<const float*>(base), rows, z);
  } else if (type == 1) {
    add_rows_of(static_cast<const __half*>(base), rows, z);
  } else {
    add_rows_of(static_cast<const __nv_bfloat16*>(base), rows, z);
  }
}

// The elements become z, in the type numbered `type`.
template <int COUNT>
__device__ inline void store_rows(void* base, int type, const Rows<COUNT>& rows, const float (&z)[COUNT]) {
  if (type == 0) {
    float* y = static_cast<float*>(base) + rows.first;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (i < rows.wanted) y[static_cast<size_t>(i) * rows.stride] = z[i];
    }
    return;
  }
  auto* y = static_cast<unsigned short*>(base) + rows.first;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const unsigned short half = __half_as_ushort(__float2half_rn(z[i]));
    const unsigned short bfloat16 = __bfloat16_as_ushort(__float2bfloat16_rn(z[i]));
    if (i < rows.wanted) y[static_cast<size_t>(i) * rows.stride] = type == 1 ? half : bfloat16;
  }
}
