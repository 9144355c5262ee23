// What the kernels of DeftAttention share: a warp's 16 rows of scores and of Y, in the registers of
// mma.m16n8k16 and wgmma alike. Thread (g, q) = (lane / 4, lane % 4) has of each 8 columns j
//   d[j][0, 1]  row g,      columns 8 j + 2 q, + 1
//   d[j][2, 3]  row g + 8,  the same columns
//
// Each row's largest score so far and the sum of its powers are kept, and Y is mended where the largest grows
// (the online softmax of FlashAttention). Scores are in units of log2(e), so that powers are of 2.
//
// Rotary embeddings turn queries and keys in shared memory, each warp the rows that it copied there itself.
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
  const void* x;       // (batch, length, heads + 2 kv_heads, head_size)
  const void* bias;    // strides below, in elements, 0 where it is the same for all; or null
  const void* rotary;  // (length, head_size) of each batch, cosines and sines; or null
  void* y;             // (batch, length, heads, head_size)
  long long bias_batch, bias_head, bias_row, rotary_batch;
  int length, heads, kv_heads, head_size, tiles;  // tiles: blocks of a head
  int bias_pairs;                                 // two neighbours of a row of the bias are aligned
  int causal;                                     // rows do not see later keys
  float scale;                                    // times log2(e)
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

// The head whose rows a block makes, and the first of them. With causal scores the longest blocks come first.
template <class Element>
struct Place {
  int head, first, keys_end;  // keys_end: the keys that the block's rows see
  long long batch, stride;    // of X's rows
  const Element *queries, *keys, *values, *rotary;

  __device__ Place(const Parameters& p, int rows) {
    const int index = blockIdx.x / p.tiles, tile = blockIdx.x % p.tiles;
    head = index % p.heads;
    batch = index / p.heads;
    first = (p.causal ? p.tiles - 1 - tile : tile) * rows;
    keys_end = p.causal ? min(p.length, first + rows) : p.length;
    stride = static_cast<long long>(p.heads + 2 * p.kv_heads) * p.head_size;
    const Element* x = static_cast<const Element*>(p.x) + batch * p.length * stride;
    const int shared = head / (p.heads / p.kv_heads);
    queries = x + head * p.head_size;
    keys = x + (p.heads + shared) * p.head_size;
    values = keys + p.kv_heads * p.head_size;
    rotary = static_cast<const Element*>(p.rotary) + batch * p.rotary_batch;
  }
};

// Two pairs of features.
template <class Element>
__device__ inline void turn(uint32_t a, uint32_t b, uint32_t cosine, uint32_t sine, float& first,
                            float& second) {
  const float2 x = Type<Element>::unpack(a), y = Type<Element>::unpack(b);
  const float2 c = Type<Element>::unpack(cosine), s = Type<Element>::unpack(sine);
  first = __uint_as_float(Type<Element>::pack(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y));
  second = __uint_as_float(Type<Element>::pack(y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y));
}

// Turns ROWS rows, CHUNKS times 8 features each, as THREADS threads have copied them one after another:
// features i and i + head_size / 2 by the cosine and sine in the row's turns, i and i + head_size / 2.
// rows(row, chunk) and turns(row, chunk) are places in shared memory.
template <class Element, int ROWS, int CHUNKS, int THREADS, class RowPlaces, class TurnPlaces>
__device__ inline void rotate(const Parameters& p, const RowPlaces& rows, const TurnPlaces& turns) {
  constexpr int kPairs = CHUNKS / 2, kAtOnce = 32 / CHUNKS;  // rows of a warp
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = p.head_size / 16;
  __syncwarp();
#pragma unroll
  for (int i = lane; i < ROWS * 32 / THREADS * kPairs; i += 32) {
    const int own = i / kPairs, chunk = i % kPairs;
    const int row = own / kAtOnce * (THREADS / CHUNKS) + warp * kAtOnce + own % kAtOnce;
    if (chunk >= half) continue;
    const uint32_t at[2] = {rows(row, chunk), rows(row, chunk + half)};
    const uint4 a = ptx::load_shared_16(at[0]), b = ptx::load_shared_16(at[1]);
    const uint4 cosines = ptx::load_shared_16(turns(row, chunk));
    const uint4 sines = ptx::load_shared_16(turns(row, chunk + half));
    float4 turned[2];
    turn<Element>(a.x, b.x, cosines.x, sines.x, turned[0].x, turned[1].x);
    turn<Element>(a.y, b.y, cosines.y, sines.y, turned[0].y, turned[1].y);
    turn<Element>(a.z, b.z, cosines.z, sines.z, turned[0].z, turned[1].z);
    turn<Element>(a.w, b.w, cosines.w, sines.w, turned[0].w, turned[1].w);
    ptx::store_shared(at[0], turned[0]);
    ptx::store_shared(at[1], turned[1]);
  }
  __syncwarp();
}

// Two neighbours of a row.
template <class Element>
__device__ inline uint32_t bias_at(const Parameters& p, const Element* bias, int key) {
  if (key >= p.length) return 0;
  if (p.bias_pairs) return *reinterpret_cast<const uint32_t*>(bias + key);
  return Type<Element>::pack(static_cast<float>(bias[key]),
                             static_cast<float>(bias[min(key + 1, p.length - 1)]));
}

// The bias of rows row ... and keys key ..., of each thread what it has of the scores: columns n of 8, of its
// upper or lower row.
template <class Element>
class Bias {
 public:
  __device__ Bias(const Parameters& p, const Place<Element>& place, int row, int key)
      : p_(p), key_(key + threadIdx.x % 4 * 2) {
    const Element* start =
        static_cast<const Element*>(p.bias) + place.batch * p.bias_batch + place.head * p.bias_head;
    row += threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      lines_[half] = start + min(row + 8 * half, p.length - 1) * p.bias_row;
  }
  __device__ uint32_t operator()(int n, int half) const { return bias_at(p_, lines_[half], key_ + 8 * n); }

 private:
  const Parameters& p_;
  const Element* lines_[2];
  int key_;
};

// Scales the scores of rows row ... and keys key ..., adds their bias, and hides keys that the rows do not
// see.
template <class Element, int COUNT, class Biases>
__device__ inline void finish_scores(const Parameters& p, float (&scores)[COUNT][4], const Biases& bias,
                                     int row, int key) {
  const int lane = threadIdx.x % 32;
  const bool all_seen = key + 8 * COUNT <= (p.causal ? min(p.length, row + 1) : p.length);
  row += lane / 4;
  key += lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < COUNT; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] *= p.scale;
  }
  if (p.bias != nullptr) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 two = Type<Element>::unpack(bias(n, half));
        scores[n][2 * half] = fmaf(two.x, kLog2E, scores[n][2 * half]);
        scores[n][2 * half + 1] = fmaf(two.y, kLog2E, scores[n][2 * half + 1]);
      }
    }
  }
  if (all_seen) return;
  const int ends[2] = {p.causal ? min(p.length, row + 1) : p.length,
                       p.causal ? min(p.length, row + 9) : p.length};
#pragma unroll
  for (int n = 0; n < COUNT; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (key + 8 * n + i % 2 >= ends[i / 2]) scores[n][i] = -INFINITY;
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
