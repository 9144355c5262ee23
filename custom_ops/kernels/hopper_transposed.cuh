// The end of a tile of Yᵀ whose sums are in wgmma's registers, W having been the left operand: a warpgroup's
// sums are 64 output features by some rows of X, and thread t of it, lane (g, q), holds of features
// 16 (t / 32) + g and 8 more the rows 8 j + 2 q and the next, for every j. Works a warpgroup at a time, on 64
// rows of X after the other, in 16 KiB of shared memory of its own.
//
// As in hopper_epilogue.cuh there is a fast way, store_boxes_of_columns, and one for everything, through
// units.
#pragma once

#include "hopper_epilogue.cuh"

namespace hopper {

constexpr int kChunkRows = 64;  // of X
constexpr int kChunkSums = 32;  // of a thread
constexpr int kChunkBytes = kChunkRows * kUnitColumns * 2;

__device__ inline void warpgroup_sync(int warpgroup) { ptx::named_barrier_sync(2 + warpgroup, 128); }

template <int COUNT>
__device__ inline void multiply_all(float (&d)[COUNT], float factor) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) d[i] *= factor;
}

// Puts a thread's sums of a chunk of ROWS rows into units.
template <int ROWS, int COUNT>
__device__ inline void put_chunk(const float (&d)[COUNT], int chunk, uint32_t shared) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, feature = threadIdx.x / 32 % 4 * 16 + g;
#pragma unroll
  for (int c = 0; c < 2 * COUNT / ROWS; ++c) {  // registers have no run-time index
    if (c != chunk) continue;
#pragma unroll
    for (int j = 0; j < ROWS / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = j % 2 * 8 + 2 * q + i % 2;
        ptx::store_shared(shared + j / 2 * kUnitBytes + unit_offset(kUnitColumns, row, feature + i / 2 * 8),
                          d[c * (ROWS / 2) + 4 * j + i]);
      }
    }
  }
}

// Ends this warpgroup's 64 features of a tile, at (row, column), whatever the epilogue.
template <int COUNT>
__device__ inline void finish_columns(const Output& o, float (&d)[COUNT], float factor, uint32_t shared,
                                      int warpgroup, int row, int column) {
  // rows of a chunk, shared out among warps
  constexpr int kRows = COUNT < kChunkSums              ? 2 * COUNT
                        : COUNT % kChunkSums == 0       ? kChunkRows
                        : COUNT % (kChunkSums / 2) == 0 ? kChunkRows / 2
                                                        : kChunkRows / 4;
  static_assert(2 * COUNT % kRows == 0, "whole chunks");
  constexpr int part = part_rows(kUnitColumns);
  const int warp = threadIdx.x / 32 % 4;
  multiply_all(d, factor);
#pragma unroll 1
  for (int chunk = 0; chunk < 2 * COUNT / kRows; ++chunk, row += kRows) {
    if (row >= o.M || column >= o.N) return;
    warpgroup_sync(warpgroup);
    put_chunk<kRows>(d, chunk, shared);
    warpgroup_sync(warpgroup);
#pragma unroll 1
    for (int from = warp * (kRows / 4); from < (warp + 1) * (kRows / 4); from += part) {
      const int unit = from / 16, first = from % 16;
      if (o.vectors) {
        const LaneColumns columns(o, column);
        finish_vectors<1>(o, shared + unit * kUnitBytes, row + 16 * unit, first, columns);
      } else {
        finish_elements(o, shared + unit * kUnitBytes, row + 16 * unit, first, part, column);
      }
    }
  }
}

// Activation of scale factor d + bias (no residual) in type TYPE (see Epilogue) to Y's map, whose boxes are
// (64, 64). `shared`: two buffers of kChunkBytes, in rows of 128 bytes, swizzled; `buffer`: the one to begin
// with.
template <int TYPE, Finish FINISH, int COUNT>
__device__ inline void store_boxes_of_columns(const Output& o, const ptx::TensorMap& map,
                                              const float (&d)[COUNT], float factor, uint32_t shared,
                                              int& buffer, int warpgroup, int row, int column) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  float scale[2], bias[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int mine = min(column + 16 * warp + 8 * half + lane / 4, o.N - 1);  // beyond the end: not stored
    scale[half] = o.scale[mine] * factor;
    bias[half] = o.bias[mine];
  }
  // lane 8 i + r addresses row r of matrix i: rows 8 (j + i / 2) ..., features 16 warp + 8 (i % 2) ...
  const uint32_t line = (lane / 16 * 8 + lane % 8) * 128 + ((2 * warp + lane / 8 % 2) ^ lane % 8) * 16;
#pragma unroll
  for (int chunk = 0; chunk < COUNT / kChunkSums; ++chunk, row += kChunkRows, buffer ^= 1) {
    if (row >= o.M || column >= o.N) return;
    const uint32_t to = shared + buffer * kChunkBytes;
    const bool leader = threadIdx.x % 128 == 0;
    if (leader) ptx::wait_stores_read<1>();
    warpgroup_sync(warpgroup);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* two = d + chunk * kChunkSums + 4 * (j + i / 2) + 2 * (i % 2);
        const float x = finish_one<FINISH>(o.epilogue, fmaf(two[0], scale[i % 2], bias[i % 2]));
        const float y = finish_one<FINISH>(o.epilogue, fmaf(two[1], scale[i % 2], bias[i % 2]));
        pairs[i] = pack_pair(x, y, TYPE);
      }
      ptx::store_transposed(to + j * 8 * 128 + line, pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    ptx::fence_async_proxy();
    warpgroup_sync(warpgroup);
    if (leader) {
      ptx::store_box(map, to, row, column);
      ptx::commit_stores();
    }
  }
}

}  // namespace hopper
