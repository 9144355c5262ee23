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

// Puts a thread's sums of a chunk at place(unit of 16 rows in the chunk, row and column in the unit).
template <int COUNT, class Place>
__device__ inline void put_chunk(const float (&d)[COUNT], int chunk, Place place) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, feature = threadIdx.x / 32 % 4 * 16 + g;
#pragma unroll
  for (int c = 0; c < COUNT / kChunkSums; ++c) {  // registers have no run-time index
    if (c != chunk) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        ptx::store_shared(place(j / 2, j % 2 * 8 + 2 * q + i % 2, feature + i / 2 * 8),
                          d[c * kChunkSums + 4 * j + i]);
      }
    }
  }
}

// Ends this warpgroup's 64 features of a tile, at (row, column), whatever the epilogue.
template <int COUNT>
__device__ inline void finish_columns(const Output& o, float (&d)[COUNT], float factor, uint32_t shared,
                                      int warpgroup, int row, int column) {
  const int warp = threadIdx.x / 32 % 4;
  multiply_all(d, factor);
#pragma unroll 1
  for (int chunk = 0; chunk < COUNT / kChunkSums; ++chunk, row += kChunkRows) {
    if (row >= o.M || column >= o.N) return;
    warpgroup_sync(warpgroup);
    put_chunk(d, chunk,
              [&](int unit, int r, int c) { return shared + unit * kUnitBytes + unit_offset(r, c); });
    warpgroup_sync(warpgroup);
    const OwnSums sums{shared + warp * kUnitBytes};
    if (o.vectors) {
#pragma unroll 1
      for (int part = 0; part < 4; ++part) finish_vectors<1>(o, sums, row + 16 * warp, column, part);
    } else {
      finish_elements(o, sums, row + 16 * warp, column, 0, 4);
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
