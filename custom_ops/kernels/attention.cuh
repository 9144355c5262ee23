// What the kernels of DeftAttention share: a warp's 16 rows of scores and of Y, in the registers of
// mma.m16n8k16 and wgmma alike. Thread (g, q) = (lane / 4, lane % 4) has of each 8 columns j
//   d[j][0, 1]  row g,      columns 8 j + 2 q, + 1
//   d[j][2, 3]  row g + 8,  the same columns
//
// Each row's largest score so far and the sum of its powers are kept, and Y is mended where the largest grows
// (the online softmax of FlashAttention). Scores are in units of log2(e), so that powers are of 2.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "epilogue.cuh"
#include "ptx_hopper.cuh"

namespace attention {

constexpr int kKeys = 64;  // of a step
constexpr unsigned kFull = 0xffffffff;

// The field order is that of runtime/cuda_attention.cpp.
struct Parameters {
  const void* x;     // (batch, length, 3, heads, head_size)
  const void* bias;  // strides below, in elements, 0 where it is the same for all; or null
  void* y;           // (batch, length, heads, head_size)
  long long bias_batch, bias_head, bias_row;
  int length, heads, head_size, tiles;  // tiles: blocks of a head
  int bias_pairs;                       // two neighbours of a row of the bias are aligned
  float scale;                          // times log2(e)
};

template <class Element>
struct Type;
template <>
struct Type<__half> {
  static __device__ uint32_t pack(float a, float b) {
    const __half2 pair = __floats2half2_rn(a, b);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  static __device__ float2 unpack(uint32_t pair) { return __half22float2(reinterpret_cast<__half2&>(pair)); }
};
template <>
struct Type<__nv_bfloat16> {
  static __device__ uint32_t pack(float a, float b) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  static __device__ float2 unpack(uint32_t pair) {
    return __bfloat1622float2(reinterpret_cast<__nv_bfloat162&>(pair));
  }
};

// The head whose rows a block makes, and the first of them.
template <class Element>
struct Place {
  int head, first;
  long long batch, stride;  // of X's rows
  const Element* start;     // of the first query

  __device__ Place(const Parameters& p, int rows) {
    const int index = blockIdx.x / p.tiles;
    head = index % p.heads;
    batch = index / p.heads;
    first = blockIdx.x % p.tiles * rows;
    stride = 3ll * p.heads * p.head_size;
    start = static_cast<const Element*>(p.x) + batch * p.length * stride + head * p.head_size;
  }
};

template <class Element>
__device__ inline float2 bias_at(const Parameters& p, const Element* bias, int key) {
  if (key >= p.length) return make_float2(0, 0);
  if (p.bias_pairs) return Type<Element>::unpack(*reinterpret_cast<const uint32_t*>(bias + key));
  return make_float2(static_cast<float>(bias[key]), static_cast<float>(bias[min(key + 1, p.length - 1)]));
}

// Scales the scores of rows row ... and keys key ..., adds the bias, and hides keys beyond the sequence.
template <class Element, int COUNT>
__device__ inline void finish_scores(const Parameters& p, const Place<Element>& place,
                                     float (&scores)[COUNT][4], int row, int key) {
  const int lane = threadIdx.x % 32, end = key + 8 * COUNT;
  row += lane / 4;
  key += lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < COUNT; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] *= p.scale;
  }
  if (p.bias != nullptr) {
    const Element* bias =
        static_cast<const Element*>(p.bias) + place.batch * p.bias_batch + place.head * p.bias_head;
#pragma unroll
    for (int n = 0; n < COUNT; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = min(row + 8 * half, p.length - 1);
        const float2 two = bias_at(p, bias + at * p.bias_row, key + 8 * n);
        scores[n][2 * half] = fmaf(two.x, kLog2E, scores[n][2 * half]);
        scores[n][2 * half + 1] = fmaf(two.y, kLog2E, scores[n][2 * half + 1]);
      }
    }
  }
  if (end <= p.length) return;
#pragma unroll
  for (int n = 0; n < COUNT; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (key + 8 * n + i % 2 >= p.length) scores[n][i] = -INFINITY;
    }
  }
}

// 16 rows of Y.
template <class Element, int SIZE>
struct Rows {
  float sums[SIZE / 8][4], largest[2], total[2];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < SIZE / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = 0;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) largest[half] = -INFINITY, total[half] = 0;
  }

  // Scores to powers of 2 below each row's largest; what was summed up so far follows a new largest.
  template <int COUNT>
  __device__ void to_powers(float (&scores)[COUNT][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = largest[half];
#pragma unroll
      for (int n = 0; n < COUNT; ++n) {
        most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(kFull, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kFull, most, 2));
      const float base = most == -INFINITY ? 0 : most;  // nothing but masked keys so far
      const float factor = power_of_two(largest[half] - base);
      float more = 0;
#pragma unroll
      for (int n = 0; n < COUNT; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = power_of_two(scores[n][i] - base);
          more += scores[n][i];
        }
      }
      largest[half] = most;
      total[half] = fmaf(total[half], factor, more);
#pragma unroll
      for (int n = 0; n < SIZE / 8; ++n) {
        sums[n][2 * half] *= factor;
        sums[n][2 * half + 1] *= factor;
      }
    }
  }

  // Puts them into shared memory; address(row, chunk): where 8 columns of one of the 16 rows belong.
  template <class Address>
  __device__ void put(const Address& address) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = total[half];
      all += __shfl_xor_sync(kFull, all, 1);
      all += __shfl_xor_sync(kFull, all, 2);
      const float factor = all == 0 ? 0 : 1 / all;
#pragma unroll
      for (int n = 0; n < SIZE / 8; ++n) {
        const float* two = sums[n] + 2 * half;
        const uint32_t pair = Type<Element>::pack(two[0] * factor, two[1] * factor);
        ptx::store_shared(address(8 * half + lane / 4, n) + lane % 4 * 4, __uint_as_float(pair));
      }
    }
  }

  // Stores what all lanes have put, as rows row ... of Y.
  template <class Address>
  static __device__ void store(const Parameters& p, const Place<Element>& place, int row,
                               const Address& address) {
    __syncwarp();
    auto* y = static_cast<Element*>(p.y);
    for (int i = threadIdx.x % 32; i < 16 * (SIZE / 8); i += 32) {
      const int within = i / (SIZE / 8), chunk = i % (SIZE / 8);
      if (row + within >= p.length || 8 * chunk >= p.head_size) continue;
      const long long line = place.batch * p.length + row + within;
      *reinterpret_cast<float4*>(y + (line * p.heads + place.head) * p.head_size + 8 * chunk) =
          ptx::load_shared(address(within, chunk));
    }
  }
};

}  // namespace attention
