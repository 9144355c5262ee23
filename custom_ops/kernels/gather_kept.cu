// Writes the kept features of X (M, features) side by side, in rows of padded_K elements that end in zeros,
// for DeftGemm nodes whose kept blocks are so short that gathering them tile by tile costs more than the
// product: what multiplies the result sees a dense matrix.
//
// A thread has 16 bytes of a row of the result, made of `Word`s that are neighbours in X too, for kRows rows,
// so that many loads are on their way and the list of kept blocks is read once. Which types X may have is all
// the same: elements are copied.
#include <cstdint>

#include "early_start.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kRows = 8;  // of a thread

// The kernels' argument; runtime/gemm_gathered.cpp has the same. Sizes in words.
struct Problem {
  const void* x;
  uint4* values;
  const int* kept;  // kept blocks
  int M;
  int words;        // of a row that are kept
  int features;     // of a row of X
  int block_shift;  // log2 of those of a kept block
  int vectors;      // of 16 bytes, of a row of the result
  int row_threads;  // a power of two, at most kThreads
};

template <class Word>
__device__ Word zero() {
  return 0;
}
template <>
__device__ uint4 zero() {
  return {};
}

template <class Word>
__device__ void gather(const Problem& p) {
  constexpr int kWords = sizeof(uint4) / sizeof(Word);
  struct alignas(16) Vector {
    Word word[kWords];
  };
  const int per_row = (p.vectors + p.row_threads - 1) / p.row_threads;  // blocks
  const int v = blockIdx.x % per_row * p.row_threads + threadIdx.x % p.row_threads;
  const int step = kThreads / p.row_threads;
  const int first = blockIdx.x / per_row * step * kRows + threadIdx.x / p.row_threads;

  int from[kWords];  // in a row of X; behind its end: zero
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const int k = v * kWords + i;
    from[i] = p.features;
    if (k < p.words) {
      from[i] = (p.kept[k >> p.block_shift] << p.block_shift) + (k & ((1 << p.block_shift) - 1));
    }
  }
  wait_for_operands();
  if (v >= p.vectors) return;
  const auto* x = static_cast<const Word*>(p.x);
  Vector held[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = first + r * step;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const bool inside = row < p.M && from[i] < p.features;
      held[r].word[i] = inside ? x[static_cast<size_t>(row) * p.features + from[i]] : zero<Word>();
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = first + r * step;
    if (row < p.M) {
      p.values[static_cast<size_t>(row) * p.vectors + v] = *reinterpret_cast<const uint4*>(&held[r]);
    }
  }
}

}  // namespace

#define KERNEL(name, Word)                                                                         \
  extern "C" __global__ void __launch_bounds__(kThreads) name(const __grid_constant__ Problem p) { \
    gather<Word>(p);                                                                               \
  }
KERNEL(gather_kept_16, uint4)
KERNEL(gather_kept_4, uint32_t)
KERNEL(gather_kept_2, uint16_t)
