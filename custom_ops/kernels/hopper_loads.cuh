// The warps of gemm_hopper.cu that load: they fill stages with the operands of one K step after the other, in
// boxes of a tensor map, swizzled as wgmma reads them.
#pragma once

#include "hopper_work.cuh"

namespace hopper {

// Where an operand lies in a stage, the rows of its tile, and their bytes in a K step.
template <class T>
struct OfX {
  static constexpr bool kIsX = true;
  static constexpr int kRows = T::kRows, kRowBytes = hopper::kRowBytes, kOffset = 0, kBytes = T::kXBytes;
};
template <class T>
struct OfW {
  static constexpr bool kIsX = false;
  static constexpr int kRows = T::kColumns, kRowBytes = hopper::kRowBytes, kOffset = T::kXBytes,
                       kBytes = T::kWBytes;
};

template <bool SHARED>
__device__ void load(uint32_t to, const ptx::TensorMap& map, int row, int column, uint32_t barrier,
                     uint16_t blocks) {
  if (SHARED) {
    ptx::load_box_multicast(to, map, row, column, barrier, blocks);
  } else {
    ptx::load_box(to, map, row, column, barrier);
  }
}

// Loads one operand of every tile of this block, all features in turn: a box a step. SHARED: this block's
// half of it, for both blocks of the pair. `offset`: from tiles' rows to the operand's. One thread.
template <class T, class Operand, bool SHARED>
__device__ void load_all(const ptx::TensorMap& map, const Work<T>& work, uint32_t memory, int offset = 0) {
  const int half = SHARED ? work.member * Operand::kRows / 2 : 0;
  const auto blocks = static_cast<uint16_t>(3 << work.first_rank);
  const uint32_t to = memory + Operand::kOffset + half * Operand::kRowBytes;
  Ring<T::kStages> ring;
  for (int cell = work.index; cell < work.row_cells * work.column_cells; cell += work.count) {
    int row, column;
    work.place(cell, &row, &column);
    const int first = (Operand::kIsX ? row : column) + offset + half;
    int k = work.first_step * kStepK;
#pragma unroll 1
    for (int step = work.steps; step > 0; --step, k += kStepK, ring.next()) {
      ptx::barrier_wait(empty<T>(memory, ring.slot), ring.phase ^ 1);
      ptx::barrier_arrive_expect(full<T>(memory, ring.slot), Operand::kBytes);
      load<SHARED>(to + ring.slot * T::kStageBytes, map, first, k, full<T>(memory, ring.slot), blocks);
    }
  }
}

// Loads one operand of every tile of this block, all features in turn, in boxes of box_rows rows, the last of
// which ends with the tile or with the operand, which has all_rows: a row beyond it takes the copy engine
// several times as long as others. The place of a row in its swizzle is that of its address, so boxes may
// begin with any row. One thread.
template <class T, class Operand>
__device__ void load_rows(const ptx::TensorMap& map, int box_rows, int all_rows, const Work<T>& work,
                          uint32_t memory) {
  Ring<T::kStages> ring;
  for (int cell = work.index; cell < work.row_cells * work.column_cells; cell += work.count) {
    int row, column;
    work.place(cell, &row, &column);
    const int start = Operand::kIsX ? row : column;
    const int rows = max(0, min(Operand::kRows, all_rows - start)), boxes = (rows + box_rows - 1) / box_rows;
    const int last = max(0, rows - box_rows);
    int k = work.first_step * kStepK;
#pragma unroll 1
    for (int step = work.steps; step > 0; --step, k += kStepK, ring.next()) {
      const uint32_t to = memory + Operand::kOffset + ring.slot * T::kStageBytes;
      const uint32_t barrier = full<T>(memory, ring.slot);
      ptx::barrier_wait(empty<T>(memory, ring.slot), ring.phase ^ 1);
      ptx::barrier_arrive_expect(barrier, boxes * box_rows * kRowBytes);
#pragma unroll 1
      for (int box = 0; box < boxes; ++box) {
        const int first = min(box * box_rows, last);
        ptx::load_box(to + first * kRowBytes, map, start + first, k, barrier);
      }
    }
  }
}

// Loads X's kept blocks, one box each where a block is less than a K step. A warp: lane i knows box i of a
// step. Waits for the kernel ahead when it knows the first blocks.
template <class T, bool SHARED>
__device__ void load_kept(const Problem& p, const Work<T>& work, uint32_t memory) {
  const int lane = threadIdx.x % 32, width = p.box_columns, boxes = kStepK / width;
  const bool leader = ptx::elect_one();
  const int half = SHARED ? work.member * T::kRows / 2 : 0;
  const auto blocks = static_cast<uint16_t>(3 << work.first_rank);
  const int box_bytes = T::kRows * 2 * width;
  const auto column_of = [&](int step) {
    const int k = step * kStepK + lane * width;
    if (lane >= boxes || k >= p.K) return p.features;  // beyond the end: zeros
    const int inside = k & ((1 << p.block_shift) - 1);
    return (p.kept[k >> p.block_shift] << p.block_shift) + inside;
  };
  Ring<T::kStages> ring;
  for (int cell = work.index; cell < work.row_cells * work.column_cells; cell += work.count) {
    int row, column;
    work.place(cell, &row, &column);
    const int last = work.first_step + work.steps;
    int mine = column_of(work.first_step);
    // only X may come from the kernel ahead
    if (cell == work.index) ptx::wait_dependencies();
#pragma unroll 1
    for (int step = work.first_step; step < last; ++step, ring.next()) {
      const int next = column_of(step + 1);
      const uint32_t barrier = full<T>(memory, ring.slot);
      ptx::barrier_wait(empty<T>(memory, ring.slot), ring.phase ^ 1);
      if (leader) ptx::barrier_arrive_expect(barrier, T::kXBytes);
      uint32_t to = memory + ring.slot * T::kStageBytes + half * 2 * width;
#pragma unroll 1
      for (int i = 0; i < boxes; ++i, to += box_bytes) {
        const int first = __shfl_sync(0xffffffff, mine, i);
        if (leader) load<SHARED>(to, p.x, row + half, first, barrier, blocks);
      }
      mine = next;
    }
  }
}

template <class T>
__device__ void load_x(const Problem& p, const Work<T>& work, uint32_t memory) {
  const bool shared = work.pair == kPairColumns;
  if (p.kept != nullptr) {
    if (shared) {
      load_kept<T, true>(p, work, memory);
    } else {
      load_kept<T, false>(p, work, memory);
    }
    return;
  }
  ptx::wait_dependencies();
  if (ptx::elect_one()) {
    if (shared) {
      load_all<T, OfX<T>, true>(p.x, work, memory);
    } else {
      load_rows<T, OfX<T>>(p.x, p.x_box, p.output.M, work, memory);
    }
  }
}

// W is constant: it need not wait for the kernels before this one.
template <class T>
__device__ void load_w(const Problem& p, const Work<T>& work, uint32_t memory) {
  if (!ptx::elect_one()) return;
  if (work.pair == kPairRows) {
    load_all<T, OfW<T>, true>(p.w, work, memory);
  } else {
    load_all<T, OfW<T>, false>(p.w, work, memory);
  }
}

}  // namespace hopper
