// The four warps of gemm_hopper.cu that load where X is a matrix of images' windows and what is kept of them
// are vectors of 8 channels, or few of them together: the copy engine writes one row of a box a cycle,
// however narrow it is, which would take longer than the product. Here threads copy the vectors (cp.async), 8
// vectors of a K step for 4 pixels an instruction of a warp: neighbouring vectors of the list mostly lie in
// the same lines of a pixel. The copy engine brings W meanwhile, at the word of a thread of the first warp.
#pragma once

#include "hopper_windows.cuh"

namespace hopper {

// Beside Problem, whose X map is not used. M = batch · rows · columns of Y. A vector is 8 channels, 16 bytes.
struct Vectors {
  const uint4* x;  // (batch, in_rows, in_columns, pixel)
  // (groups, count): of a kept vector, how many vectors it lies behind the first of its window's pixel at the
  // tap's row, and the tap: rows of X below the window's start << 16 | number of the tap. Lists are filled up
  // to whole K steps by tap 31, which no window has: zeros.
  const int2* list;
  int count;
  WindowGrid grid;
  int in_rows, in_columns, pixel;
  int kernel_rows, kernel_columns, row_dilation, column_dilation;
};

constexpr int kVectors = kStepK / 8;  // of a K step

// The same tiles; a thread that copies knows the windows of some pixels.
template <int WARPGROUPS, int COLUMNS, int STAGES, int MOST_SPLITS = 1, bool PING_PONG = false>
struct VectorTile : Tile<WARPGROUPS, COLUMNS, STAGES, MOST_SPLITS, PING_PONG> {
  static constexpr bool kCopied = true;
  static constexpr int kFills = 1 + 128;  // W's, and each copying thread's
  static constexpr int kLoaderRegisters = 56;
  static constexpr int kRegisters = 224;
  static_assert(WARPGROUPS == 2, "registers of a block");
};

// Where the window of a pixel of Y starts in X, in vectors, and which of its taps lie inside the image: bit
// by bit.
struct WindowOfPixel {
  int start;
  uint32_t taps;

  WindowOfPixel() = default;
  __device__ WindowOfPixel(const Vectors& v, int pixel, int end) {
    const WindowGrid& grid = v.grid;
    const int pixels = grid.rows * grid.columns, image = pixel / pixels, within = pixel % pixels;
    const int row = within / grid.columns * grid.row_stride + grid.row_start;
    const int column = within % grid.columns * grid.column_stride + grid.column_start;
    start = ((image * v.in_rows + row) * v.in_columns + column) * v.pixel;
    uint32_t across = 0;
    for (int i = 0; i < v.kernel_columns; ++i) {
      const bool inside = static_cast<uint32_t>(column + i * v.column_dilation) < v.in_columns;
      across |= static_cast<uint32_t>(inside) << i;
    }
    taps = 0;
    for (int i = 0; i < v.kernel_rows; ++i) {
      if (static_cast<uint32_t>(row + i * v.row_dilation) < v.in_rows) taps |= across << i * v.kernel_columns;
    }
    if (pixel >= end) taps = 0;
  }
};

// W's stages, one after the other. One thread.
template <class T>
class StagesOfW {
 public:
  __device__ StagesOfW(const Problem& p, const Work<T>& work, uint32_t memory)
      : p_(p), work_(work), memory_(memory) {}

  // Of a K step of the tile of `column`.
  __device__ void load(int slot, int column, int step) const {
    const uint32_t barrier = full<T>(memory_, slot);
    const uint32_t to = memory_ + T::kXBytes + slot * T::kStageBytes;
    ptx::barrier_arrive_expect(barrier, T::kWBytes);
    if (work_.pair == kPairRows) {
      const int half = work_.member * T::kColumns / 2;
      ptx::load_box_multicast(to + half * kRowBytes, p_.w, column + half, step * kStepK, barrier,
                              static_cast<uint16_t>(3 << work_.first_rank));
    } else {
      ptx::load_box(to, p_.w, column, step * kStepK, barrier);
    }
  }

 private:
  const Problem& p_;
  const Work<T>& work_;
  uint32_t memory_;
};

// A tile's windows and list, made while the tile before is loaded: lane i of a warp has the warp's row i.
template <class T>
struct VectorsOfTile {
  static constexpr int kRows = T::kRows / 4, kOwn = (kRows + 31) / 32;
  int column;
  WindowOfPixel own[kOwn];
  const int2* list;
  int2 first;

  __device__ VectorsOfTile(const Problem& p, const Vectors& v, const Work<T>& work, int cell, int warp) {
    const int lane = threadIdx.x % 32;
    int row;
    work.place(cell, &row, &column);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own[i] = WindowOfPixel(v, row + warp * kRows + 32 * i + lane, p.output.M);
    // the second tile of a pair may lie behind the last group
    const int group = min(column, p.output.N - 1) / v.grid.outputs;
    list = v.list + group * v.count + work.first_step * kVectors + lane % kVectors;
    first = __ldg(list);
  }
};

// Loads X's kept vectors and W for every tile of this block. `warp`: of the four. CACHED: by way of the
// first-level cache.
template <class T, bool CACHED>
__device__ void copy_vectors(const Problem& p, const Vectors& v, const Work<T>& work, uint32_t memory,
                             int warp) {
  constexpr int kRows = VectorsOfTile<T>::kRows, kCopies = kRows / 4;  // of a thread in a K step
  const int lane = threadIdx.x % 32, vector = lane % kVectors, quarter = lane / kVectors;
  const bool leader = warp == 0 && ptx::elect_one();
  const StagesOfW<T> w(p, work, memory);
  int ahead = min(T::kStages, work.steps);  // stages of W that are under way, being constant
  if (leader) {
    int m, n;
    work.place(work.index, &m, &n);
    for (int step = 0; step < ahead; ++step) w.load(step, n, work.first_step + step);
  }
  __syncwarp();
  const int cells = work.row_cells * work.column_cells;
  VectorsOfTile<T> next(p, v, work, work.index, warp);
  // chunks of 16 bytes are exchanged by the row's last three bits
  const uint32_t place = memory + (warp * kRows + quarter) * kRowBytes;
  const uint32_t even = place + (vector ^ quarter) * 16, odd = place + (vector ^ quarter ^ 4) * 16;
  const int line = v.in_columns * v.pixel;
  Ring<T::kStages> ring;
  ptx::wait_dependencies();
  for (int cell = work.index; cell < cells; cell += work.count) {
    const VectorsOfTile<T> tile = next;
    WindowOfPixel windows[kCopies];
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int from = (4 * i + quarter) % 32;
      windows[i].start = __shfl_sync(0xffffffff, tile.own[4 * i / 32].start, from);
      windows[i].taps = __shfl_sync(0xffffffff, tile.own[4 * i / 32].taps, from);
    }
    const int2* list = tile.list;
    int2 entry = tile.first;
#pragma unroll 1
    for (int step = 0; step < work.steps; ++step, ring.next()) {
      list += kVectors;
      int2 following = entry;
      if (step + 1 < work.steps) following = __ldg(list);
      const int offset = entry.x + (entry.y >> 16) * line, tap = entry.y & 31;
      ptx::barrier_wait(empty<T>(memory, ring.slot), ring.phase ^ 1);
      if (leader && ahead == 0) w.load(ring.slot, tile.column, work.first_step + step);
      if (ahead > 0) --ahead;
      __syncwarp();
      const uint32_t stage = ring.slot * T::kStageBytes;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const uint32_t to = stage + (i % 2 == 0 ? even : odd) + 4 * i * kRowBytes;
        const bool inside = windows[i].taps >> tap & 1;
        const uint4* from = v.x + windows[i].start + offset;
        if (CACHED) {
          ptx::copy_16_cached(to, from, inside);
        } else {
          ptx::copy_16(to, from, inside);
        }
      }
      ptx::barrier_arrive_after_copies(full<T>(memory, ring.slot));
      if (step == 0 && cell + work.count < cells) {
        next = VectorsOfTile<T>(p, v, work, cell + work.count, warp);
      }
      entry = following;
    }
  }
  ptx::wait_copies();
}

// Windows of several taps share pixels, which then come from the cache: the list keeps them together.
template <class T>
__device__ void load_vectors(const Problem& p, const Vectors& v, const Work<T>& work, uint32_t memory,
                             int warp) {
  if (v.kernel_rows * v.kernel_columns > 1) {
    copy_vectors<T, true>(p, v, work, memory, warp);
  } else {
    copy_vectors<T, false>(p, v, work, memory, warp);
  }
}

}  // namespace hopper
