// DeftConv of one channel a group (depthwise), float16 or bfloat16, sums in float32. What it costs is reading
// X and writing Y: a thread makes 8 neighbouring channels (16 bytes) of PIXELS neighbouring pixels of a row,
// and keeps what their windows share in registers.
#include <cstdint>

#include "activate_all.cuh"
#include "early_start.cuh"

namespace {

constexpr int kPixels = 4;

// The field order is that of runtime/conv_depthwise.cpp.
struct Parameters {
  const uint4* x;         // (batch, in_rows, in_columns, vectors)
  const uint4* weight;    // (taps, vectors)
  const float* scale;     // (channels,)
  const float* bias;      // (channels,)
  const uint4* residual;  // (batch, out_rows, out_columns, vectors) or null
  uint4* y;
  long long items;  // vectors · strips of kPixels · out_rows · batch
  int vectors;      // of 8 channels
  int strips;       // of a row of Y
  int in_rows, in_columns, out_rows, out_columns;
  int kernel_rows, kernel_columns;
  int row_stride, column_stride, row_start, column_start, row_dilation, column_dilation;
  Epilogue epilogue;
};

template <class Element>
struct Pair;
template <>
struct Pair<__half> {
  static __device__ float2 unpack(uint32_t word) {
    return __half22float2(reinterpret_cast<const __half2&>(word));
  }
  static __device__ uint32_t pack(float a, float b) {
    const __half2 pair = __floats2half2_rn(a, b);
    return reinterpret_cast<const uint32_t&>(pair);
  }
};
template <>
struct Pair<__nv_bfloat16> {
  static __device__ float2 unpack(uint32_t word) {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(word));
  }
  static __device__ uint32_t pack(float a, float b) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return reinterpret_cast<const uint32_t&>(pair);
  }
};

template <class Element>
__device__ void unpack(const uint4& v, float (&f)[8]) {
  const uint32_t words[] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = Pair<Element>::unpack(words[i]);
    f[2 * i] = two.x, f[2 * i + 1] = two.y;
  }
}

// The vectors of X from pixel `column` of a row on, `step` pixels apart; zeros outside the image.
template <int COUNT>
__device__ void load_line(const Parameters& p, const uint4* line, int column, int step, uint4 (&v)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const int at = column + i * step;
    const bool inside = at >= 0 && at < p.in_columns;
    v[i] = inside ? line[static_cast<long long>(at) * p.vectors] : uint4{0, 0, 0, 0};
  }
}

template <class Element>
__device__ void add_products(const float (&w)[8], const uint4& x, float (&sums)[8]) {
  float f[8];
  unpack<Element>(x, f);
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[i] = fmaf(f[i], w[i], sums[i]);
}

// One row of the filter. COLUMNS, STRIDE: of the filter, if neighbouring windows share what they see (no
// dilation); COLUMNS = 0: any.
template <class Element, int COLUMNS, int STRIDE>
__device__ void add_row(const Parameters& p, const uint4* line, const uint4* weight, int column,
                        float (&sums)[kPixels][8]) {
  if constexpr (COLUMNS > 0) {
    uint4 x[(kPixels - 1) * STRIDE + COLUMNS];
    load_line(p, line, column, 1, x);
#pragma unroll
    for (int k = 0; k < COLUMNS; ++k) {
      float w[8];
      unpack<Element>(__ldg(weight + k * p.vectors), w);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) add_products<Element>(w, x[i * STRIDE + k], sums[i]);
    }
  } else {
    for (int k = 0; k < p.kernel_columns; ++k) {
      uint4 x[kPixels];
      load_line(p, line, column + k * p.column_dilation, p.column_stride, x);
      float w[8];
      unpack<Element>(__ldg(weight + k * p.vectors), w);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) add_products<Element>(w, x[i], sums[i]);
    }
  }
}

template <class Element, int COLUMNS, int STRIDE>
__device__ void convolve(const Parameters& p) {
  const long long item = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= p.items) return;
  const int vector = static_cast<int>(item % p.vectors);
  const long long strip = item / p.vectors, row_of_all = strip / p.strips;
  const int first = static_cast<int>(strip % p.strips) * kPixels;
  const int row = static_cast<int>(row_of_all % p.out_rows);
  const long long image = row_of_all / p.out_rows;
  const int column = first * p.column_stride + p.column_start;
  float sums[kPixels][8] = {};
  const uint4* weight = p.weight + vector;
  wait_for_operands();
  for (int k = 0; k < p.kernel_rows; ++k, weight += p.kernel_columns * p.vectors) {
    const int at = row * p.row_stride + p.row_start + k * p.row_dilation;
    if (at < 0 || at >= p.in_rows) continue;
    const uint4* line = p.x + (image * p.in_rows + at) * p.in_columns * p.vectors + vector;
    add_row<Element, COLUMNS, STRIDE>(p, line, weight, column, sums);
  }
  const auto* scale = reinterpret_cast<const float4*>(p.scale) + 2 * vector;
  const auto* bias = reinterpret_cast<const float4*>(p.bias) + 2 * vector;
  const float4 s[] = {__ldg(scale), __ldg(scale + 1)}, b[] = {__ldg(bias), __ldg(bias + 1)};
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (first + i >= p.out_columns) return;
    const long long to = (row_of_all * p.out_columns + first + i) * p.vectors + vector;
    float (&z)[8] = sums[i];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      z[4 * j] = fmaf(z[4 * j], s[j].x, b[j].x);
      z[4 * j + 1] = fmaf(z[4 * j + 1], s[j].y, b[j].y);
      z[4 * j + 2] = fmaf(z[4 * j + 2], s[j].z, b[j].z);
      z[4 * j + 3] = fmaf(z[4 * j + 3], s[j].w, b[j].w);
    }
    if (p.residual != nullptr) {
      float added[8];
      unpack<Element>(p.residual[to], added);
#pragma unroll
      for (int j = 0; j < 8; ++j) z[j] += added[j];
    }
    activate_all(p.epilogue, z);
    p.y[to] = {Pair<Element>::pack(z[0], z[1]), Pair<Element>::pack(z[2], z[3]),
               Pair<Element>::pack(z[4], z[5]), Pair<Element>::pack(z[6], z[7])};
  }
}

}  // namespace

#define KERNEL(NAME, ELEMENT, COLUMNS, STRIDE)                                                   \
  extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ Parameters p) { \
    convolve<ELEMENT, COLUMNS, STRIDE>(p);                                                       \
  }
#define KERNELS(TYPE, ELEMENT)            \
  KERNEL(TYPE##_any, ELEMENT, 0, 1)       \
  KERNEL(TYPE##_3, ELEMENT, 3, 1)         \
  KERNEL(TYPE##_3_stride2, ELEMENT, 3, 2) \
  KERNEL(TYPE##_5, ELEMENT, 5, 1)         \
  KERNEL(TYPE##_5_stride2, ELEMENT, 5, 2) \
  KERNEL(TYPE##_7, ELEMENT, 7, 1)

KERNELS(fp16, __half)
KERNELS(bf16, __nv_bfloat16)
