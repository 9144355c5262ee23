// The work of a block of gemm_hopper.cu: the problem, the shape of its tile, which tiles it makes, and the
// ring of stages between the warps that load and those that multiply.
//
// Shared memory of a block: stages [kStages]: X rows, W rows | each multiplying warp's own, for the epilogue
// | barriers
#pragma once

#include "hopper_epilogue.cuh"
#include "ptx_hopper.cuh"

namespace hopper {

constexpr int kStepK = 64;
constexpr int kRowBytes = 2 * kStepK;  // of a stage
constexpr int kPairRows = 1, kPairColumns = 2;

// The kernels' argument; runtime/gemm_hopper.cpp has the same.
struct Problem {
  ptx::TensorMap x;  // boxes (kRows or x_box, box_columns), half the rows if a pair shares them
  ptx::TensorMap w;  // boxes (kColumns, 64), half the rows if a pair shares them
  ptx::TensorMap y;  // boxes (16, 64); unused unless by_box
  Output output;
  const int* kept;  // kept blocks, or null
  int K;            // features that are multiplied
  int features;     // row length of X
  int block_shift;  // log2 of the features of a kept block
  int box_columns;  // of X: 64, or a kept block where that is less
  int pair;         // 0, kPairRows, kPairColumns
  int splits;       // blocks that share out K: 1, 2, 4, 8
  int group;        // row tiles (or pairs of them) that are walked together
  int by_box;       // the end is in registers: store_boxes's or store_rows's
  int x_box;        // rows of X's boxes: see load_rows; 0 if a pair shares X, or it is gathered
  int w_box;        // of W's, where they are loaded so: gemm_transposed.cu; 0 if a pair shares W
};

// WARPGROUPS multiply: 64 rows of each tile each, or, if PING_PONG, 128 rows of every other tile. At most
// MOST_SPLITS blocks share out K.
template <int WARPGROUPS, int COLUMNS, int STAGES, int MOST_SPLITS = 1, bool PING_PONG = false>
struct Tile {
  static constexpr int kColumns = COLUMNS, kStages = STAGES;
  static constexpr bool kPingPong = PING_PONG;
  static constexpr bool kCopied = false;  // X comes by threads' copies: hopper_vectors.cuh
  static constexpr int kFills = 2;        // arrivals that make a stage full: X's and W's
  static constexpr int kRows = PING_PONG ? 128 : 64 * WARPGROUPS;
  static constexpr int kBlocks = PING_PONG ? 2 : 1;         // of 64 rows, that a warpgroup multiplies
  static constexpr int kWarps = 4 * WARPGROUPS;             // that multiply
  static constexpr int kReleases = PING_PONG ? 4 : kWarps;  // warps that read a stage
  static constexpr int kSums = COLUMNS / 2;                 // of a thread, for each 64 rows
  static constexpr int kPieces = COLUMNS / kUnitColumns;    // epilogue units side by side
  static constexpr int kMostSplits = MOST_SPLITS;
  // A warp's own memory: a unit, or the sums that it gets of the others' (see hopper_splits.cuh).
  static constexpr int kSharesBytes = 16 * COLUMNS * 4 / MOST_SPLITS * (MOST_SPLITS - 1);
  static constexpr int kWarpBytes = kSharesBytes > kUnitBytes ? kSharesBytes : kUnitBytes;
  // Two warpgroups of 128 sums a thread need registers that only a whole warpgroup can give up for them.
  static constexpr bool kMovesRegisters = WARPGROUPS > 1;
  static constexpr bool kManySums = kBlocks * kSums > 128;
  static constexpr int kLoaderRegisters = kManySums ? 24 : WARPGROUPS == 2 ? 40 : 32;
  static constexpr int kRegisters = kManySums ? 240 : WARPGROUPS == 2 ? 232 : 160;
  // Of a unit, ended at a time where the end is not in registers.
  static constexpr int kParts = kManySums ? 1 : hopper::kParts;
  static constexpr int kThreads = 32 * (kWarps + (kMovesRegisters ? 4 : 2));
  static constexpr int kXBytes = kRows * kRowBytes, kWBytes = COLUMNS * kRowBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kUnits = STAGES * kStageBytes;
  static constexpr int kBarriers = kUnits + kWarps * kWarpBytes;
  static_assert(kBarriers + 8 * (2 * STAGES + 3) <= 227 * 1024, "shared memory of a block");
};

// What this block does within its cluster, and the tiles it makes.
template <class T>
struct Work {
  int member, split, cluster, first_rank;  // member of the pair; first_rank: of this block's pair
  int index, count;                        // this cluster among all
  int row_cells, column_cells, group;
  int pair;
  int first_step, steps;

  __device__ explicit Work(const Problem& p) {
    const int pairs = p.pair ? 2 : 1;
    cluster = pairs * p.splits;
    const int rank = cluster > 1 ? ptx::cluster_rank() : 0;
    member = rank & (pairs - 1);
    split = p.pair ? rank >> 1 : rank;
    first_rank = rank - member;
    index = blockIdx.x / cluster;
    count = gridDim.x / cluster;
    pair = p.pair;
    group = p.group;
    const int rows = pair == kPairRows ? 2 * T::kRows : T::kRows;
    const int columns = pair == kPairColumns ? 2 * T::kColumns : T::kColumns;
    row_cells = (p.output.M + rows - 1) / rows;
    column_cells = (p.output.N + columns - 1) / columns;
    const int all = (p.K + kStepK - 1) / kStepK;
    first_step = all * split / p.splits;
    steps = all * (split + 1) / p.splits - first_step;
  }

  // Row and column of this block's tile of a cell. `group` row cells are walked column by column, so that
  // clusters at work at one time share rows of X and of W in the L2 cache.
  __device__ void place(int cell, int* row, int* column) const {
    const int in_group = group * column_cells;
    const int first = cell / in_group * group;
    const int height = min(row_cells - first, group);
    const int within = cell % in_group;
    int r = first + within % height, c = within / height;
    if (pair == kPairRows) r = 2 * r + member;
    if (pair == kPairColumns) c = 2 * c + member;
    *row = r * T::kRows;
    *column = c * T::kColumns;
  }
};

// A multiplying warp's own memory, for the epilogue.
template <class T>
__device__ inline uint32_t own_memory(uint32_t memory, int warp) {
  return memory + T::kUnits + warp * T::kWarpBytes;
}

// A place in the ring of stages.
template <int STAGES>
struct Ring {
  int slot = 0;
  uint32_t phase = 0;
  __device__ void next() {
    if (++slot == STAGES) slot = 0, phase ^= 1;
  }
  __device__ void skip(int stages) {
    slot += stages;
    phase ^= slot / STAGES & 1;
    slot %= STAGES;
  }
};

// Barriers, by the address of the block's memory. Of a stage: full when its bytes have come, empty when all
// readers have released it. turn: of a ping-pong warpgroup, when the other one has multiplied. partial_sums:
// when those of all blocks that share K have come.
template <class T>
__device__ inline uint32_t full(uint32_t memory, int slot) {
  return memory + T::kBarriers + 8 * slot;
}
template <class T>
__device__ inline uint32_t empty(uint32_t memory, int slot) {
  return full<T>(memory, slot) + 8 * T::kStages;
}
template <class T>
__device__ inline uint32_t turn(uint32_t memory, int warpgroup) {
  return empty<T>(memory, T::kStages) + 8 * warpgroup;
}

template <class T>
__device__ inline uint32_t partial_sums(uint32_t memory) {
  return turn<T>(memory, 2);
}

// A warp that multiplies has read a stage: tells every block that fills it.
template <class T>
__device__ inline void release(const Work<T>& work, uint32_t memory, int slot) {
  const int lane = threadIdx.x % 32;
  if (work.pair) {
    if (lane < 2) ptx::barrier_arrive_at(empty<T>(memory, slot), work.first_rank + lane);
  } else if (lane == 0) {
    ptx::barrier_arrive(empty<T>(memory, slot));
  }
}

// One thread. Others see the barriers after a fence and a barrier of the block or cluster. `fills`: arrivals
// that make a stage full.
template <class T>
__device__ inline void init_barriers(const Problem& p, uint32_t memory, int fills = 2) {
  for (int slot = 0; slot < T::kStages; ++slot) {
    ptx::barrier_init(full<T>(memory, slot), fills);
    ptx::barrier_init(empty<T>(memory, slot), T::kReleases * (p.pair ? 2 : 1));
  }
  ptx::barrier_init(turn<T>(memory, 0), 4);
  ptx::barrier_init(turn<T>(memory, 1), 4);
  ptx::barrier_init(partial_sums<T>(memory), 1);
  ptx::fence_barrier_init();
  if (p.splits > 1) {
    const int all = T::kRows * T::kColumns * 4;
    ptx::barrier_arrive_expect(partial_sums<T>(memory), all / p.splits * (p.splits - 1));
  }
}

// How a block starts, all of its threads: barriers, seen by the whole cluster, and the next kernel may start
// too. `fills`: arrivals that make a stage full, X's and W's if both come by the copy engine.
template <class T>
__device__ inline void begin(const Problem& p, const Work<T>& work, uint32_t memory, int warp,
                             int fills = 2) {
  if (warp == T::kWarps && ptx::elect_one()) {
    ptx::prefetch_map(p.x);
    ptx::prefetch_map(p.w);
    if (p.by_box) ptx::prefetch_map(p.y);
    init_barriers<T>(p, memory, fills);
  }
  __syncwarp();
  if (work.cluster > 1) {
    ptx::cluster_sync();
  } else {
    __syncthreads();
  }
  ptx::launch_dependents();
}

}  // namespace hopper
