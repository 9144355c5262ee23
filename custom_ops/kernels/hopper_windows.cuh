// The warp of gemm_hopper.cu that loads X where X is a matrix of images' windows, made as it is read: row m
// is what the filter's window sees at output pixel m. The copy engine gathers it (im2col mode of a tensor
// map: stride, padding and dilation included), so a list of blocks of channels costs what a dense K loop
// costs, and elimination is a shorter list.
#pragma once

#include "hopper_work.cuh"
#include "ptx_im2col.cuh"

namespace hopper {

// Where the windows of Y's pixels start in X's images.
struct WindowGrid {
  int outputs;        // output features of a group: a multiple of a tile's where there are several groups
  int rows, columns;  // of Y's images
  int row_stride, column_stride;
  int row_start, column_start;  // of the first window: -padding
};

// Beside Problem, whose X map is in im2col mode. M = batch · rows · columns of Y.
struct Windows {
  // (groups, block_count): first channel of X, and the tap's offsets in pixels, rows << 16 | columns. A block
  // is box_columns channels at one tap. Rows of the list are filled up to whole K steps by blocks beyond the
  // last channel, which are zeros.
  const int2* blocks;
  int block_count;
  WindowGrid grid;
};

// Loads X's blocks for every tile of this block. SHARED: this block's half of the rows, for both blocks of
// the pair. A warp: lane i copies block i of a step.
template <class T, bool SHARED>
__device__ void load_windows(const Problem& p, const Windows& w, const Work<T>& work, uint32_t memory) {
  const int lane = threadIdx.x % 32, width = p.box_columns, boxes = kStepK / width;
  const int half = SHARED ? work.member * T::kRows / 2 : 0;
  const auto members = static_cast<uint16_t>(3 << work.first_rank);
  const WindowGrid& grid = w.grid;
  const unsigned pixels = grid.rows * grid.columns, columns = grid.columns, outputs = grid.outputs;
  const uint32_t place = memory + half * 2 * width + lane * T::kRows * 2 * width;
  const int first_block = work.first_step * boxes + lane;
  Ring<T::kStages> ring;
  for (int cell = work.index; cell < work.row_cells * work.column_cells; cell += work.count) {
    int m, n;
    work.place(cell, &m, &n);
    m += half;
    // the second tile of a pair may lie behind the last group
    const unsigned feature = min(n, p.output.N - 1);
    const unsigned group = feature < outputs ? 0 : feature / outputs;
    const int2* mine = w.blocks + group * w.block_count + first_block;
    int2 next = lane < boxes ? *mine : int2{};
    const unsigned image = m / pixels, pixel = m - image * pixels, line = pixel / columns;
    const int row = static_cast<int>(line) * grid.row_stride + grid.row_start;
    const int column = static_cast<int>(pixel - line * columns) * grid.column_stride + grid.column_start;
    // only what the copy engine reads may come from the kernel ahead
    if (cell == work.index) ptx::wait_dependencies();
#pragma unroll 1
    for (int step = work.steps; step > 0; --step, ring.next()) {
      const int2 block = next;
      mine += boxes;
      if (lane < boxes && step > 1) next = *mine;
      const uint32_t barrier = full<T>(memory, ring.slot);
      ptx::barrier_wait(empty<T>(memory, ring.slot), ring.phase ^ 1);
      if (lane == 0) ptx::barrier_arrive_expect(barrier, T::kXBytes);
      __syncwarp();
      if (lane >= boxes) continue;
      const uint32_t to = place + ring.slot * T::kStageBytes;
      const auto tap_row = static_cast<uint16_t>(block.y >> 16), tap_column = static_cast<uint16_t>(block.y);
      if (SHARED) {
        ptx::load_im2col_multicast(to, p.x, block.x, column, row, image, tap_column, tap_row, barrier,
                                   members);
      } else {
        ptx::load_im2col(to, p.x, block.x, column, row, image, tap_column, tap_row, barrier);
      }
    }
  }
}

template <class T>
__device__ void load_x(const Problem& p, const Windows& windows, const Work<T>& work, uint32_t memory) {
  if (work.pair == kPairColumns) {
    load_windows<T, true>(p, windows, work, memory);
  } else {
    load_windows<T, false>(p, windows, work, memory);
  }
}

}  // namespace hopper
