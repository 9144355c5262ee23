// Where the blocks of a cluster share out K of one tile: their sums change hands through shared memory and
// are added in a fixed order.
//
// A tile is made of units (hopper_epilogue.cuh), row by row; with COUNT blocks a unit is made of items of
// some of its rows, each added up by one of the blocks: item i, counted through the tile, by block i % COUNT,
// as the (i / COUNT)th that it gets from each. The partial sums take the place of the stages: what the block
// has, a slice for each of the others, and then what it gets.
#pragma once

#include "hopper_epilogue.cuh"
#include "hopper_work.cuh"

namespace hopper {

template <class T, int COUNT>
struct Split {
  static constexpr int kParts = 8 / COUNT;   // of 4 rows, in an item
  static constexpr int kItems = 4 / kParts;  // in a unit
  static constexpr int kItemBytes = kParts * 1024;
  static constexpr int kAll = T::kRows / 16 * T::kPieces * kItems;
  static constexpr int kSliceBytes = kAll / COUNT * kItemBytes;
  static constexpr int kReceived = COUNT * kSliceBytes;
  static_assert(2 * kReceived <= T::kUnits, "room for the partial sums");

  // Where the warps put the sum of (row, column) of a unit.
  static __device__ uint32_t place(uint32_t memory, int unit, int row, int column) {
    const int item = row / (4 * kParts), i = unit * kItems + item;
    return memory + i % COUNT * kSliceBytes + (i / COUNT - item) * kItemBytes + unit_offset(row, column);
  }
};

// The warps that multiply, once all their sums are in place: sends them to the blocks that add them up, then
// adds up and ends this block's share.
template <int COUNT, class T>
__device__ inline void exchange_and_finish(const Problem& p, const Work<T>& work, uint32_t memory, int row,
                                           int column) {
  using S = Split<T, COUNT>;
  ptx::fence_async_proxy();
  ptx::named_barrier_sync(1, 32 * T::kWarps);
  ptx::cluster_sync();  // no block reads stages any more
  if (threadIdx.x == 0) {
#pragma unroll
    for (int other = 0; other < COUNT; ++other) {
      const int rank = other * (work.pair ? 2 : 1) + work.member;
      const uint32_t to = ptx::address_at(memory + S::kReceived + work.split * S::kSliceBytes, rank);
      const uint32_t barrier = ptx::address_at(partial_sums<T>(memory), rank);
      ptx::copy_to_block(to, memory + other * S::kSliceBytes, S::kSliceBytes, barrier);
    }
  }
  ptx::barrier_wait(partial_sums<T>(memory), 0);
  for (int j = threadIdx.x / 32; j < S::kAll / COUNT; j += T::kWarps) {
    const int i = j * COUNT + work.split, unit = i / S::kItems, item = i % S::kItems;
    const PartialSums<COUNT> sums{memory + S::kReceived + (j - item) * S::kItemBytes, S::kSliceBytes};
    const int unit_row = row + unit / T::kPieces * 16,
              unit_column = column + unit % T::kPieces * kUnitColumns;
    if (p.output.vectors) {
      finish_vectors<S::kParts>(p.output, sums, unit_row, unit_column, item * S::kParts);
    } else {
      finish_elements(p.output, sums, unit_row, unit_column, item * S::kParts, S::kParts);
    }
  }
}

}  // namespace hopper
