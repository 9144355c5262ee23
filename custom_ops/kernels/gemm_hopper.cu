// DeftGemm on Hopper: Y = activation(X · (Wᵀ * scale) + bias + residual), X and W of one 16-bit type, sums in
// float32.
//
// X is (M, features), W (N, Kp), both row-major, read by the copy engine; Y is (M, N). A block is one or two
// warpgroups that multiply and two warps that keep a ring of stages filled ahead of them, one with X and one
// with W. A stage is one K step of 64 features: the tile's rows of X and of W, swizzled as wgmma reads them.
//
//   * Blocks are persistent: the warps that load go on to the next tile at once. Two warpgroups either make
//     tiles in turn (kPingPong), so that one stores while the other multiplies, or 64 rows of each tile; then
//     they share nothing but stages, and the second starts two stages behind the first, to the same end.
//   * Kept blocks: the warp that loads X walks their list. Blocks of less than a K step come as boxes of
//     their own, 8, 16 or 32 columns wide, side by side in the stage: wgmma takes each width through its
//     descriptor, so one kernel serves all.
//   * pair: two blocks of a cluster make two tiles of the same columns (kPairRows) or rows (kPairColumns);
//     each loads half of what they share, for both.
//   * splits: blocks of a cluster share out K of one tile; their sums are added in a fixed order at the end.
//   * Where the launch allows it the next kernel starts early; only W is loaded before this one waits for X.
//
// Requires: X's and W's rows multiples of 16 bytes; kept blocks of 8 features or more, a short one last.
//
// For other operands: ptx_hopper.cuh and wgmma.cuh are free of this kernel; Work, Ring and the barriers of
// hopper_work.cuh and load_all of hopper_loads.cuh only take a Tile's sizes; hopper_epilogue.cuh takes the
// sums of any wgmma whose rows are X's. A kernel with W on the left (unpacked in registers) makes the
// transposed tile and needs an end of its own.
#include "hopper_loads.cuh"
#include "hopper_residual.cuh"
#include "hopper_splits.cuh"
#include "hopper_vectors.cuh"
#include "hopper_windows.cuh"
#include "hopper_work.cuh"
#include "wgmma.cuh"

namespace hopper {
namespace {

constexpr int kSkew = 2;  // stages the second warpgroup starts behind the first

// Descriptors of the first stage's operands of a warpgroup, and how far the four products of a K step lie
// apart in X.
struct Operands {
  uint64_t x, w;
  int x_step[4];

  template <class T>
  __device__ static Operands make(uint32_t memory, int warpgroup, int box_columns) {
    Operands o;
    const int width = 2 * box_columns;
    o.x = wgmma::descriptor(memory + warpgroup * 64 * width, width, T::kRows * width);
    o.w = wgmma::descriptor(memory + T::kXBytes, kRowBytes, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // in units of 16 bytes
      o.x_step[i] = width == 128 ? 2 * i : width == 64 ? i / 2 * T::kRows * 4 + i % 2 * 2 : i * T::kRows * 2;
    }
    return o;
  }
};

template <class Element, class T>
class Consumer {
 public:
  __device__ Consumer(const Problem& p, const Work<T>& work, uint32_t memory, int warp)
      : p_(p), work_(work), memory_(memory), warp_(warp), warpgroup_(warp / 4) {
    operands_ = Operands::make<T>(memory, T::kPingPong ? 0 : warpgroup_, p.box_columns);
  }

  __device__ void run() {
    const int cells = work_.row_cells * work_.column_cells;
    const int stride = T::kPingPong ? 2 * work_.count : work_.count;
    int cell = work_.index;
    if (T::kPingPong) {
      cell += warpgroup_ * work_.count;
      ring_.skip(warpgroup_ * work_.steps);
    } else if (warpgroup_ > 0 && work_.steps > kSkew) {
      ptx::barrier_wait(full<T>(memory_, kSkew), 0);
    }
    for (uint32_t round = 0; cell < cells; cell += stride, ++round) {
      int row, column;
      work_.place(cell, &row, &column);
      const bool adds = p_.by_box && p_.output.residual != nullptr;
      const bool at_once = kEndsAtOnce && p_.by_box && !adds && p_.splits == 1;
      ReadColumns<kEndsAtOnce ? T::kColumns : kLeastColumns> columns;
      if (at_once) {
        columns.read(p_.output, column);
      } else {
        prefetch_columns<T::kColumns>(p_.output, column);
      }
      if (adds) fetch_units(row, column);
      float sums[T::kBlocks][T::kSums];
      // the second goes first in no round: its wait is for this round of the first, that of the first for the
      // last round
      if (T::kPingPong) ptx::barrier_wait(turn<T>(memory_, warpgroup_), (round ^ warpgroup_ ^ 1) & 1);
      multiply(sums);
      if (T::kPingPong) ring_.skip(work_.steps);
      if constexpr (T::kMostSplits >= 2) {
        if (p_.splits == 2) return finish_share<2>(sums[0], row + 16 * warp_, column);
      }
      if constexpr (T::kMostSplits >= 4) {
        if (p_.splits == 4) return finish_share<4>(sums[0], row + 16 * warp_, column);
      }
      if constexpr (T::kMostSplits >= 8) {
        if (p_.splits == 8) return finish_share<8>(sums[0], row + 16 * warp_, column);
      }
      if (!p_.by_box) {
        finish_apart(sums, row, column);
      } else if (adds) {
        finish_added(sums, row, column);
      } else if constexpr (kEndsAtOnce) {
        finish_rows(sums[0], columns, own_row(row, 0), column);
      } else {
        finish(sums, own_row(row, 0), column);
      }
    }
    if (p_.by_box) ptx::wait_stores_read<0>();
  }

 private:
  // Tiles of one warpgroup are for short products, where the end is not hidden: scale and bias are read
  // before the sums are made, and all rows leave together.
  static constexpr bool kEndsAtOnce = T::kWarps == 4;

  __device__ uint32_t own_unit() const { return own_memory<T>(memory_, warp_); }
  // This warp's first row of a block of 64 rows of the tile at `row`.
  __device__ int own_row(int row, int block) const {
    return row + (T::kPingPong ? 64 * block + 16 * (warp_ % 4) : 16 * warp_);
  }

  __device__ void multiply(float (&sums)[T::kBlocks][T::kSums]) {
    const int block_step = p_.box_columns * 64 * 2 >> 4;
    int previous = 0;
#pragma unroll 1
    for (int step = 0; step < work_.steps; ++step) {
      const uint64_t stage = ring_.slot * (T::kStageBytes >> 4);
      ptx::barrier_wait(full<T>(memory_, ring_.slot), ring_.phase);
      if (T::kCopied) ptx::fence_async_proxy();
      wgmma::fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int block = 0; block < T::kBlocks; ++block) {
          wgmma::Product<Element>::add(sums[block],
                                       operands_.x + stage + operands_.x_step[i] + block * block_step,
                                       operands_.w + stage + 2 * i, step > 0 || i > 0);
        }
      }
      wgmma::commit();
      wgmma::wait<1>();
      if (step > 0) release(work_, memory_, previous);
      previous = ring_.slot;
      ring_.next();
    }
    if (T::kPingPong && threadIdx.x % 32 == 0) ptx::barrier_arrive(turn<T>(memory_, 1 - warpgroup_));
    wgmma::wait<0>();
#pragma unroll
    for (int block = 0; block < T::kBlocks; ++block) wgmma::settle(sums[block]);
    release(work_, memory_, previous);
  }

  // Ends this warp's rows of a tile, from `row` on.
  __device__ void finish(const float (&sums)[T::kBlocks][T::kSums], int row, int column) const {
    switch (finish_of(p_.output.epilogue)) {
      case Finish::kFloor: store<Finish::kFloor>(sums, row, column); break;
      case Finish::kLine: store<Finish::kLine>(sums, row, column); break;
      case Finish::kSigmoid: store<Finish::kSigmoid>(sums, row, column); break;
      case Finish::kGelu: store<Finish::kGelu>(sums, row, column); break;
    }
  }

  template <Finish FINISH>
  __device__ void store(const float (&sums)[T::kBlocks][T::kSums], int row, int column) const {
    constexpr int kType = kTypeCode<Element>;
    if constexpr (T::kBlocks == 2) {
      store_boxes<kType, FINISH>(p_.output, p_.y, sums[0], own_unit(), row, column, sums[1]);
    } else {
      store_boxes<kType, FINISH>(p_.output, p_.y, sums[0], own_unit(), row, column);
    }
  }

  // Starts to bring a unit's residual, counted over the warp's rows of a tile; two units are under way at a
  // time.
  __device__ void fetch_unit(int unit, int row, int column) const {
    if (unit < T::kBlocks * T::kPieces) {
      fetch_residual(p_.output, own_unit() + unit % 2 * (kUnitBytes / 2), own_row(row, unit / T::kPieces),
                     column + unit % T::kPieces * kUnitColumns);
    }
    ptx::commit_copies();
  }
  __device__ void fetch_units(int row, int column) const {
    ptx::wait_stores_read<0>();
    __syncwarp();
    fetch_unit(0, row, column);
    fetch_unit(1, row, column);
  }

  __device__ void finish_added(const float (&sums)[T::kBlocks][T::kSums], int row, int column) const {
    if (finish_of(p_.output.epilogue) == Finish::kFloor) {
      store_added<Finish::kFloor>(sums, row, column);
    } else {
      store_added<Finish::kLine>(sums, row, column);
    }
  }

  template <Finish FINISH>
  __device__ void store_added(const float (&sums)[T::kBlocks][T::kSums], int row, int column) const {
#pragma unroll
    for (int unit = 0; unit < T::kBlocks * T::kPieces; ++unit) {
      const int block = unit / T::kPieces, piece = unit % T::kPieces, first = column + piece * kUnitColumns;
      ptx::wait_copy_groups<1>();
      __syncwarp();
      if (first < p_.output.N) {
        store_box_added<kTypeCode<Element>, FINISH>(p_.output, p_.y, sums[block], piece,
                                                    own_unit() + unit % 2 * (kUnitBytes / 2),
                                                    own_row(row, block), first);
      }
      ptx::wait_stores_read<0>();
      __syncwarp();
      fetch_unit(unit + 2, row, column);
    }
  }

  // Whatever the epilogue.
  __device__ void finish_apart(const float (&sums)[T::kBlocks][T::kSums], int row, int column) const {
    finish_units<T::kBlocks * T::kPieces, T::kParts>(
        p_.output, own_unit(),
        [&](int unit) {
          store_unit<kUnitColumns>(own_unit(), sums[unit / T::kPieces],
                                   unit % T::kPieces * (kUnitColumns / 2));
        },
        [&](int unit) { return own_row(row, unit / T::kPieces); },
        [&](int unit) { return column + unit % T::kPieces * kUnitColumns; });
  }

  // A share is neighbouring columns.
  template <int COUNT>
  __device__ void finish_share(const float (&sums)[T::kSums], int row, int column) const {
    constexpr int kColumns = T::kColumns / COUNT;
    send_shares<COUNT>(work_, sums, memory_);
    column += work_.split * kColumns;
    float total[T::kSums / COUNT];
    if constexpr (kColumns >= kLeastColumns) {
      if (p_.by_box) {
        ReadColumns<kColumns> columns;
        columns.read(p_.output, column);
        add_shares<COUNT>(work_, sums, memory_, total);
        finish_rows(total, columns, row, column);
        return;
      }
    }
    const LaneColumns columns(p_.output, column, kColumns);
    add_shares<COUNT>(work_, sums, memory_, total);
    if (column >= p_.output.N) return;
    __syncwarp();  // all lanes have read what was there before
    store_unit<kColumns>(own_unit(), total, 0);
    __syncwarp();
    finish_unit<16 / part_rows(kColumns)>(p_.output, own_unit(), row, column, columns, kColumns);
  }

  // Ends 16 rows of COLUMNS columns at once.
  template <int COLUMNS>
  __device__ void finish_rows(const float (&sums)[COLUMNS / 2], const ReadColumns<COLUMNS>& columns, int row,
                              int column) const {
    static_assert(16 * 2 * COLUMNS <= T::kWarpBytes, "room for the rows in 16 bits");
    __syncwarp();  // all lanes have read what was there before
    switch (finish_of(p_.output.epilogue)) {
      case Finish::kFloor: store_at_once<Finish::kFloor>(sums, columns, row, column); break;
      case Finish::kLine: store_at_once<Finish::kLine>(sums, columns, row, column); break;
      case Finish::kSigmoid: store_at_once<Finish::kSigmoid>(sums, columns, row, column); break;
      case Finish::kGelu: store_at_once<Finish::kGelu>(sums, columns, row, column); break;
    }
  }

  template <Finish FINISH, int COLUMNS>
  __device__ void store_at_once(const float (&sums)[COLUMNS / 2], const ReadColumns<COLUMNS>& columns,
                                int row, int column) const {
    store_rows<kTypeCode<Element>, FINISH, COLUMNS>(p_.output, sums, 0, columns, own_unit(), row, column);
  }

  const Problem& p_;
  const Work<T>& work_;
  uint32_t memory_;
  int warp_, warpgroup_;
  Operands operands_;
  Ring<T::kStages> ring_;
};

// load(work, memory, i): what warp i of those that load does.
template <class Element, class T, class Load>
__device__ void gemm(const Problem& p, const Load& load) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t memory = ptx::shared_address(shared);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const Work<T> work(p);
  if (work.index >= work.row_cells * work.column_cells) {  // here only to hold a place, see runtime
    ptx::launch_dependents();
    ptx::wait_dependencies();
    return;
  }

  begin<T>(p, work, memory, warp, T::kFills);

  if (warp >= T::kWarps) {
    if (T::kMovesRegisters) ptx::give_up_registers<T::kLoaderRegisters>();
    load(work, memory, warp - T::kWarps);
    __syncwarp();
  } else {
    if (T::kMovesRegisters) ptx::take_registers<T::kRegisters>();
    Consumer<Element, T> consumer(p, work, memory, warp);
    touch(p.output);
    ptx::wait_dependencies();
    consumer.run();
  }
  if (p.pair) ptx::cluster_sync();  // the other block may still signal this one
}

}  // namespace
}  // namespace hopper

#define KERNEL(name, Element, blocks, ...)                                                  \
  extern "C" __global__ void __launch_bounds__(hopper::Tile<__VA_ARGS__>::kThreads, blocks) \
      name(const __grid_constant__ hopper::Problem p) {                                     \
    const auto load = [&](const auto& work, uint32_t memory, int warp) {                    \
      if (warp == 0) hopper::load_x(p, work, memory);                                       \
      if (warp == 1) hopper::load_w(p, work, memory);                                       \
    };                                                                                      \
    hopper::gemm<Element, hopper::Tile<__VA_ARGS__>>(p, load);                              \
  }
#define KERNELS(type, Element)                                          \
  KERNEL(hopper_##type##_128x256, Element, 1, 2, 256, 4)                \
  KERNEL(hopper_##type##_128x192_turns, Element, 1, 2, 192, 4, 1, true) \
  KERNEL(hopper_##type##_192x128, Element, 1, 3, 128, 4)                \
  KERNEL(hopper_##type##_128x128_turns, Element, 1, 2, 128, 6, 1, true) \
  KERNEL(hopper_##type##_128x64, Element, 1, 2, 64, 7, 2)               \
  KERNEL(hopper_##type##_64x128, Element, 1, 1, 128, 8, 2)              \
  KERNEL(hopper_##type##_64x64, Element, 2, 1, 64, 6, 4)

KERNELS(fp16, __half)
KERNELS(bf16, __nv_bfloat16)

// DeftConv: the same products, X made of images' windows as it is read.
#define CONV_KERNEL(name, Element, blocks, ...)                                                    \
  extern "C" __global__ void __launch_bounds__(hopper::Tile<__VA_ARGS__>::kThreads, blocks)        \
      name(const __grid_constant__ hopper::Problem p, const __grid_constant__ hopper::Windows w) { \
    const auto load = [&](const auto& work, uint32_t memory, int warp) {                           \
      if (warp == 0) hopper::load_x(p, w, work, memory);                                           \
      if (warp == 1) hopper::load_w(p, work, memory);                                              \
    };                                                                                             \
    hopper::gemm<Element, hopper::Tile<__VA_ARGS__>>(p, load);                                     \
  }
#define CONV_KERNELS(type, Element)                                        \
  CONV_KERNEL(conv_##type##_128x256, Element, 1, 2, 256, 4)                \
  CONV_KERNEL(conv_##type##_128x192, Element, 1, 2, 192, 4)                \
  CONV_KERNEL(conv_##type##_192x128, Element, 1, 3, 128, 4)                \
  CONV_KERNEL(conv_##type##_128x128_turns, Element, 1, 2, 128, 6, 1, true) \
  CONV_KERNEL(conv_##type##_128x128, Element, 1, 2, 128, 6)                \
  CONV_KERNEL(conv_##type##_128x64_turns, Element, 1, 2, 64, 8, 1, true)   \
  CONV_KERNEL(conv_##type##_64x128, Element, 1, 1, 128, 8, 4)              \
  CONV_KERNEL(conv_##type##_64x64, Element, 2, 1, 64, 6, 8)

CONV_KERNELS(fp16, __half)
CONV_KERNELS(bf16, __nv_bfloat16)

// The same where what is kept of X are blocks of less than a K step, copied by threads.
#define VECTOR_KERNEL(name, Element, blocks, ...)                                                  \
  extern "C" __global__ void __launch_bounds__(hopper::VectorTile<__VA_ARGS__>::kThreads, blocks)  \
      name(const __grid_constant__ hopper::Problem p, const __grid_constant__ hopper::Vectors v) { \
    const auto load = [&](const auto& work, uint32_t memory, int warp) {                           \
      hopper::load_vectors(p, v, work, memory, warp);                                              \
    };                                                                                             \
    hopper::gemm<Element, hopper::VectorTile<__VA_ARGS__>>(p, load);                               \
  }
#define VECTOR_KERNELS(type, Element)                                          \
  VECTOR_KERNEL(conv_##type##_128x256_vectors, Element, 1, 2, 256, 4)          \
  VECTOR_KERNEL(conv_##type##_128x256_vectors_split, Element, 1, 2, 256, 3, 2) \
  VECTOR_KERNEL(conv_##type##_128x128_turns_vectors, Element, 1, 2, 128, 6, 1, true)

VECTOR_KERNELS(fp16, __half)
VECTOR_KERNELS(bf16, __nv_bfloat16)
