// Rounds X (M, features) row by row to the values of deft8:4 (E4M3) times a power of two, for DeftGemm nodes
// of format fp8: the least power that brings the row's largest magnitude to 448 or below, but at least
// 2^-100. deftonnx/formats/fp8.py defines the rounding, to nearest even.
//
//   rows_to_codes_*  the codes (M, padded_K) and the powers (M,), for FP8 tensor cores (compute
//   capability 8.9) rows_to_bf16_*   the rounded values (M, padded_K) as bfloat16, which hold them exactly,
//   for all other kernels
//
// Of X's features the kept ones alone are written, side by side, and zeros behind them: what multiplies them
// sees a dense matrix. A row that holds infinities or NaN becomes NaN.
//
// `row_threads` threads share a row (32 to 256 of the block's 256). They keep up to kHeld times 8 features
// each, so that X is read once; what a longer row has beyond that is read again, from the cache.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "early_start.cuh"

#if __CUDA_ARCH__ >= 890
#include <cuda_fp8.h>
#endif

namespace {

constexpr int kThreads = 256;
constexpr int kHeld = 4;           // vectors of a thread
constexpr int kLeastPower = -100;  // of two
constexpr int kInfinity = 0x7f800000;

// The kernels' argument; runtime/round_rows.cpp has the same.
struct Problem {
  const void* x;
  void* values;     // codes or bfloat16
  float* powers;    // (M,), of rows_to_codes
  const int* kept;  // kept blocks, or null
  int M, K, features, padded_K, block_shift;
  int row_threads;  // a power of two
  int vectors;      // 8 features at a time are 16-byte aligned and lie in one kept block
};

// Features 8 v ... of the kept ones, as they come.
template <class X>
struct Vector {
  static constexpr int kWords = 2 * sizeof(X);
  uint32_t word[kWords];

  __device__ static Vector load(const Problem& p, const X* row, int v) {
    Vector vector{};
    if (!p.vectors) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (8 * v + i < p.K) vector.set(i, row[column(p, 8 * v + i)]);
      }
    } else if (8 * v < p.K) {
      const auto* from = reinterpret_cast<const uint4*>(row + column(p, 8 * v));
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 four = from[i];
        uint32_t* to = vector.word + 4 * i;
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
      }
    }
    return vector;
  }

  __device__ static int column(const Problem& p, int k) {
    if (p.kept == nullptr) return k;
    return (p.kept[k >> p.block_shift] << p.block_shift) + (k & ((1 << p.block_shift) - 1));
  }

  __device__ void set(int i, float x) { word[i] = __float_as_uint(x); }
  __device__ void set(int i, __half x) { word[i / 2] |= __half_as_ushort(x) << 16 * (i % 2); }
  __device__ void set(int i, __nv_bfloat16 x) { word[i / 2] |= __bfloat16_as_ushort(x) << 16 * (i % 2); }

  __device__ float value(int i) const { return value(i, X()); }
  __device__ float value(int i, float) const { return __uint_as_float(word[i]); }
  __device__ float value(int i, __half) const {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word[i / 2] >> 16 * (i % 2))));
  }
  __device__ float value(int i, __nv_bfloat16) const {
    return __uint_as_float(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xffff0000);
  }

  // The bits of the largest magnitude, as float32: those of NaN are greater than those of any number.
  __device__ int largest(int so_far) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) so_far = max(so_far, __float_as_int(value(i)) & 0x7fffffff);
    return so_far;
  }
};

// The greatest `value` of the threads of a row.
__device__ int largest_of_row(int value, int row_threads) {
  __shared__ int of_warp[kThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(0xffffffff, value, distance));
  }
  if (row_threads == 32) return value;
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  const int warps = row_threads / 32, first = threadIdx.x / row_threads * warps;
  for (int i = 0; i < warps; ++i) value = max(value, of_warp[first + i]);
  return value;
}

// The power of two that brings a magnitude of these bits to 448 = 1.75 * 2^8 or below, as its exponent.
__device__ int power_for(int bits) {
  return max((bits + (0x7fffff - 0x600000) >> 23) - 127 - 8, kLeastPower);
}

__device__ float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

#if __CUDA_ARCH__ >= 890
struct Codes {
  template <class X>
  __device__ static void store(const Problem& p, size_t at, const Vector<X>& v, float down, float) {
    uint2 codes;
    auto* pairs = reinterpret_cast<__nv_fp8x2_storage_t*>(&codes);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pairs[i] = __nv_cvt_float2_to_fp8x2(make_float2(v.value(2 * i) * down, v.value(2 * i + 1) * down),
                                          __NV_SATFINITE, __NV_E4M3);
    }
    *reinterpret_cast<uint2*>(static_cast<uint8_t*>(p.values) + at) = codes;
  }
};
#endif

struct Bfloat16s {
  // To three mantissa bits, or to multiples of 2^-9: where adding `magic` leaves no more.
  __device__ static float round(float v) {
    const int exponent = max(__float_as_int(v) >> 23 & 0xff, 127 - 6);
    const float magic = __int_as_float(exponent + 20 << 23 | 0x400000);
    return __fsub_rn(__fadd_rn(v, magic), magic);
  }
  template <class X>
  __device__ static void store(const Problem& p, size_t at, const Vector<X>& v, float down, float up) {
    __nv_bfloat162 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pairs[i] =
          __floats2bfloat162_rn(round(v.value(2 * i) * down) * up, round(v.value(2 * i + 1) * down) * up);
    }
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(p.values) + at) =
        *reinterpret_cast<const uint4*>(pairs);
  }
};

template <class X, class Output>
__device__ void round_rows(const Problem& p) {
  wait_for_operands();
  const int place = threadIdx.x % p.row_threads;
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kThreads / p.row_threads) + threadIdx.x / p.row_threads;
  const bool exists = row < p.M;
  const X* x = static_cast<const X*>(p.x) + (exists ? row : 0) * p.features;
  const int count = p.padded_K / 8;

  Vector<X> held[kHeld];
  int bits = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int v = place + i * p.row_threads;
    if (v < count) held[i] = Vector<X>::load(p, x, v);
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (place + i * p.row_threads < count) bits = held[i].largest(bits);
  }
  for (int v = place + kHeld * p.row_threads; v < count; v += p.row_threads) {
    bits = Vector<X>::load(p, x, v).largest(bits);
  }
  bits = largest_of_row(bits, p.row_threads);
  if (!exists) return;

  const int power = power_for(bits);
  const float down = power_of_two(-power);
  const float up = bits >= kInfinity ? __int_as_float(0x7fffffff) : power_of_two(power);
  const size_t start = static_cast<size_t>(row) * p.padded_K;
  if (place == 0 && p.powers != nullptr) p.powers[row] = up;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int v = place + i * p.row_threads;
    if (v < count) Output::store(p, start + 8 * v, held[i], down, up);
  }
  for (int v = place + kHeld * p.row_threads; v < count; v += p.row_threads) {
    Output::store(p, start + 8 * v, Vector<X>::load(p, x, v), down, up);
  }
}

}  // namespace

#if __CUDA_ARCH__ < 800
#define MANY 4
#else
#define MANY 6  // blocks on a multiprocessor: loads on their way are what it takes
#endif
#define KERNEL(name, blocks, X, Output)                                                                    \
  extern "C" __global__ void __launch_bounds__(kThreads, blocks) name(const __grid_constant__ Problem p) { \
    round_rows<X, Output>(p);                                                                              \
  }
KERNEL(rows_to_bf16_fp32, 3, float, Bfloat16s)
KERNEL(rows_to_bf16_fp16, MANY, __half, Bfloat16s)
KERNEL(rows_to_bf16_bf16, MANY, __nv_bfloat16, Bfloat16s)
#if __CUDA_ARCH__ >= 890 || !defined(__CUDA_ARCH__)
KERNEL(rows_to_codes_fp32, 3, float, Codes)
KERNEL(rows_to_codes_fp16, MANY, __half, Codes)
KERNEL(rows_to_codes_bf16, MANY, __nv_bfloat16, Codes)
#endif
