// Activations of many values at once, for kernels that hold a tile's sums in registers: one branch for all of
// them, and instructions short enough that the unrolled code stays in the instruction cache.
#pragma once

#include "epilogue.cuh"

// The error function to 2e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
__device__ inline float erf_short(float x) {
  const float magnitude = fabsf(x);
  const float t = __fdividef(1.0f, 1.0f + 0.3275911f * magnitude);
  const float p =
      t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  return copysignf(1.0f - p * __expf(-x * x), x);
}

__device__ inline float max_or_nan(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}

__device__ inline float min_or_nan(float a, float b) {
  float c;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}

// Curve 0 without a gate.
__device__ inline float clamp_line(const Epilogue& e, float z) {
  return min_or_nan(max_or_nan(z * e.slope + e.offset, e.low), e.high);
}

// The activations of COUNT values, in place: one branch for all of them.
template <int COUNT>
__device__ inline void activate_all(const Epilogue& e, float (&z)[COUNT]) {
  float g[COUNT];
  if (e.curve == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) g[i] = clamp_line(e, z[i]);
  } else if (e.curve == 1) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      g[i] = __fdividef(e.slope, 1.0f + __expf(-z[i] * (e.low + e.high * z[i] * z[i]))) + e.offset;
    }
  } else if (e.curve == 2) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) g[i] = e.slope * (1.0f + erf_short(z[i] * 0.70710678f)) + e.offset;
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) g[i] = z[i] < 0.0f ? z[i] * e.slope : z[i];
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) z[i] = e.gated ? z[i] * g[i] : g[i];
}
