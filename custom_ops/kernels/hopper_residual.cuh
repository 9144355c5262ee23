// The end of a tile whose residual has Y's 16-bit type and whose activation is a line and a clamp: the
// residual comes unit by unit to where Y will leave from, ahead of its use, and Y takes its place. Works a
// warp at a time, as hopper_epilogue.cuh does.
#pragma once

#include "hopper_epilogue.cuh"

namespace hopper {

// Starts to copy 16 rows by 64 columns of the residual to `buffer`, swizzled as boxes are. Zeros beyond the
// matrix. Needs output.vectors.
__device__ inline void fetch_residual(const Output& o, uint32_t buffer, int row, int column) {
  const int lane = threadIdx.x % 32, piece = lane % 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int line = 4 * i + lane / 8;
    const bool inside = row + line < o.M && column + 8 * piece < o.N;
    const size_t at = inside ? static_cast<size_t>(row + line) * o.N + column + 8 * piece : 0;
    const uint32_t to = buffer + line * 128 + ((piece ^ (line & 7)) << 4);
    ptx::copy_16(to, static_cast<const uint16_t*>(o.residual) + at, inside);
  }
}

// Columns 64 unit ... of this warp's sums: activation of scale d + bias + residual, which lies at `buffer`,
// to Y's map, whose boxes are (16, 64).
template <int TYPE, Finish FINISH, int COUNT>
__device__ inline void store_box_added(const Output& o, const ptx::TensorMap& map, const float (&d)[COUNT],
                                       int unit, uint32_t buffer, int row, int column) {
  const int lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    // lane 8 i + r addresses row r of matrix i: columns 8 (j + i / 2) ..., rows 8 (i % 2) ...
    const uint32_t place = buffer + lane % 16 * 128 + (((j + lane / 16) ^ (lane & 7)) << 4);
    uint32_t pairs[4];
    ptx::load_matrices(place, pairs);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int mine = min(column + 8 * (j + i) + 2 * q, o.N - 2);  // beyond the end: not stored
      const float2 s = *reinterpret_cast<const float2*>(o.scale + mine);
      const float2 b = *reinterpret_cast<const float2*>(o.bias + mine);
      const float* four = d + 32 * unit + 4 * (j + i);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 added = unpack_pair(pairs[2 * i + half], TYPE);
        const float x = finish_one<FINISH>(o.epilogue, fmaf(four[2 * half], s.x, b.x) + added.x);
        const float y = finish_one<FINISH>(o.epilogue, fmaf(four[2 * half + 1], s.y, b.y) + added.y);
        pairs[2 * i + half] = pack_pair(x, y, TYPE);
      }
    }
    ptx::store_matrices(place, pairs[0], pairs[1], pairs[2], pairs[3]);
  }
  ptx::fence_async_proxy();
  __syncwarp();
  if (lane == 0) {
    ptx::store_box(map, buffer, row, column);
    ptx::commit_stores();
  }
}

}  // namespace hopper
