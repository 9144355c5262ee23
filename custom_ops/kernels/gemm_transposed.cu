// DeftGemm and DeftConv on Hopper with W as the left operand of wgmma: two warpgroups make 64 output features
// each of a tile of Yᵀ. Rows of X are the right operand, so that a tile has as many of them, in sixteens, as
// fill the GPU best. A product of 192 rows reads less of shared memory than three of 64 do, fewer warps wait
// for each stage, and scale and bias are two numbers a thread, which it reads while the tile is multiplied.
//
// Loads and the ring of stages are those of gemm_hopper.cu. The end is that of hopper_transposed.cuh, but
// all of a tile has a place of its own in shared memory, so that nothing waits for another part to leave.
//
// Requires: X's and W's rows multiples of 16 bytes, all features of X (of a convolution: boxes of 64
// channels), and no residual where Y leaves in boxes.
#include "hopper_loads.cuh"
#include "hopper_transposed.cuh"
#include "hopper_windows.cuh"
#include "hopper_work.cuh"
#include "wgmma.cuh"

namespace hopper {
namespace {

constexpr int kFeatures = 128;  // of a tile

// ROWS of X by kFeatures; names as in Tile of hopper_work.cuh.
template <int ROWS, int STAGES>
struct TransposedTile {
  static constexpr int kRows = ROWS, kColumns = kFeatures, kStages = STAGES;
  static constexpr int kWarps = 8, kReleases = kWarps, kThreads = 32 * (kWarps + 4);
  static constexpr int kSums = ROWS / 2;                          // of a thread
  static constexpr int kWarpBytes = 2 * kUnitColumns * ROWS / 4;  // a quarter of its warpgroup's Y
  static constexpr int kLoaderRegisters = 40, kRegisters = 232;
  static constexpr int kXBytes = kRows * kRowBytes, kWBytes = kColumns * kRowBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kUnits = STAGES * kStageBytes;
  static constexpr int kBarriers = kUnits + kWarps * kWarpBytes;
  static constexpr int kBox = ROWS % 64 == 0 ? 64 : ROWS % 32 == 0 ? 32 : 16;  // rows of the boxes of Y's map
  static_assert(ROWS % kBox == 0 && 4 * kWarpBytes >= 4 * kUnitColumns * kBox, "finish_columns");
  static_assert(kBarriers + 8 * (2 * STAGES + 3) <= 227 * 1024, "shared memory of a block");
};

}  // namespace

// As for other tiles, but K is not shared out. Short: a block begins with it.
template <int ROWS, int STAGES>
struct Work<TransposedTile<ROWS, STAGES>> {
  int cluster, member, first_rank = 0;
  int index, count;
  int row_cells, column_cells, group;
  int pair;
  int first_step = 0, steps;

  __device__ explicit Work(const Problem& p)
      : cluster(p.pair ? 2 : 1),
        member(p.pair ? ptx::cluster_rank() : 0),
        index(p.pair ? blockIdx.x / 2 : blockIdx.x),
        count(p.pair ? gridDim.x / 2 : gridDim.x),
        row_cells((p.output.M + ROWS - 1) / ROWS),
        column_cells((p.output.N + kFeatures - 1) / kFeatures),
        group(p.group),
        pair(p.pair),
        steps((p.K + kStepK - 1) / kStepK) {
    if (pair == kPairRows) row_cells = (row_cells + 1) / 2;
    if (pair == kPairColumns) column_cells = (column_cells + 1) / 2;
  }

  __device__ void place(int cell, int* row, int* column) const {
    int r = cell, c = 0;
    if (column_cells > 1) {
      const unsigned in_group = group * column_cells;
      const unsigned first = cell / in_group * group, within = cell % in_group;
      const unsigned height = min(row_cells - first, group);
      r = first + within % height, c = within / height;
    }
    if (pair == kPairRows) r = 2 * r + member;
    if (pair == kPairColumns) c = 2 * c + member;
    *row = r * ROWS;
    *column = c * kFeatures;
  }
};

namespace {

// A warpgroup that multiplies and ends 64 features of tiles.
template <class Element, class T>
class TransposedConsumer {
 public:
  __device__ TransposedConsumer(const Problem& p, const Work<T>& work, uint32_t memory, int warp)
      : p_(p), work_(work), memory_(memory), warpgroup_(warp / 4) {
    w_ = wgmma::descriptor(memory + T::kXBytes + warpgroup_ * 64 * kRowBytes, kRowBytes, 0);
    x_ = wgmma::descriptor(memory, kRowBytes, 0);
  }

  __device__ void run() {
    const int cells = work_.row_cells * work_.column_cells;
    for (int cell = work_.index; cell < cells; cell += work_.count) {
      int row, column;
      work_.place(cell, &row, &column);
      column += 64 * warpgroup_;
      const FeaturePair features(p_.output, column);
      float sums[T::kSums];
      multiply(sums);
      finish(sums, features, row, column);
    }
    if (p_.by_box && leads()) ptx::wait_stores_read<0>();
  }

 private:
  // Scale and bias of the thread's two features.
  struct FeaturePair {
    ColumnPair low, high;  // each twice, as finish_pair wants them

    __device__ FeaturePair(const Output& o, int column) {
      column += threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
      low = read(o, column), high = read(o, column + 8);
    }
    __device__ static ColumnPair read(const Output& o, int column) {
      const int mine = min(column, o.N - 1);  // beyond the end: not stored
      const float scale = o.scale[mine], bias = o.bias[mine];
      return {{scale, scale}, {bias, bias}};
    }
  };

  __device__ bool leads() const { return threadIdx.x % 128 == 0; }
  __device__ uint32_t own_chunks() const { return own_memory<T>(memory_, 4 * warpgroup_); }

  __device__ void multiply(float (&sums)[T::kSums]) {
    int previous = 0;
#pragma unroll 1
    for (int step = 0; step < work_.steps; ++step) {
      const uint64_t stage = ring_.slot * (T::kStageBytes >> 4);
      ptx::barrier_wait(full<T>(memory_, ring_.slot), ring_.phase);
      wgmma::fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        wgmma::Product<Element>::add(sums, w_ + stage + 2 * i, x_ + stage + 2 * i, step > 0 || i > 0);
      }
      wgmma::commit();
      wgmma::wait<1>();
      if (step > 0) release(work_, memory_, previous);
      previous = ring_.slot;
      ring_.next();
    }
    wgmma::wait<0>();
    wgmma::settle(sums);
    release(work_, memory_, previous);
  }

  __device__ void finish(float (&sums)[T::kSums], const FeaturePair& features, int row, int column) const {
    if (!p_.by_box) {
      finish_columns(p_.output, sums, 1.0f, own_chunks(), warpgroup_, row, column);
      return;
    }
    switch (finish_of(p_.output.epilogue)) {
      case Finish::kFloor: store<Finish::kFloor>(sums, features, row, column); break;
      case Finish::kLine: store<Finish::kLine>(sums, features, row, column); break;
      case Finish::kSigmoid: store<Finish::kSigmoid>(sums, features, row, column); break;
      case Finish::kGelu: store<Finish::kGelu>(sums, features, row, column); break;
    }
  }

  // To Y's map, whose boxes are (kBox, 64), in chunks; no residual.
  template <Finish FINISH>
  __device__ void store(const float (&sums)[T::kSums], const FeaturePair& features, int row,
                        int column) const {
    constexpr int kType = kTypeCode<Element>;
    const ColumnPair low = prepared<FINISH>(features.low), high = prepared<FINISH>(features.high);
    if (leads()) ptx::wait_stores_read<0>();  // those of the tile before
    warpgroup_sync(warpgroup_);
    if (column >= p_.output.N) return;
    // lane 8 i + r addresses row r of matrix i: rows 8 (j + i / 2) ..., features 16 warp + 8 (i % 2) ...
    const int lane = threadIdx.x % 32, piece = 2 * (threadIdx.x / 32 % 4) + lane / 8 % 2;
    const uint32_t within = (lane / 16 * 8 + lane % 8) * 128 + (piece ^ lane % 8) * 16;
#pragma unroll
    for (int first = 0; first < T::kRows; first += kChunkRows) {
      const uint32_t to = own_chunks() + first * (2 * kUnitColumns);
#pragma unroll
      for (int j = 0; j < kChunkRows / 8; j += 2) {
        if (first + 8 * j >= T::kRows) continue;
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* two = sums + first / 2 + 4 * (j + i / 2) + 2 * (i % 2);
          pairs[i] = finish_pair<kType, FINISH>(p_.output.epilogue, two[0], two[1], i % 2 ? high : low);
        }
        ptx::store_transposed(to + within + j * 8 * 128, pairs[0], pairs[1], pairs[2], pairs[3]);
      }
      ptx::fence_async_proxy();
      warpgroup_sync(warpgroup_);
      if (leads()) {
#pragma unroll
        for (int box = first; box < min(first + kChunkRows, T::kRows); box += T::kBox) {
          ptx::store_box(p_.y, own_chunks() + box * (2 * kUnitColumns), row + box, column);
        }
        ptx::commit_stores();
      }
    }
  }

  const Problem& p_;
  const Work<T>& work_;
  uint32_t memory_;
  int warpgroup_;
  uint64_t w_, x_;  // descriptors of the first stage's operands
  Ring<T::kStages> ring_;
};

// As load_w, but where the last tile has features beyond the last its boxes do not reach there.
template <class T>
__device__ void load_w_rows(const Problem& p, const Work<T>& work, uint32_t memory) {
  if (!ptx::elect_one()) return;
  if (work.pair == kPairRows) {
    load_all<T, OfW<T>, true>(p.w, work, memory);
  } else {
    load_rows<T, OfW<T>>(p.w, p.w_box, p.output.N, work, memory);
  }
}

// load(work, memory, i): what warp i of the two that load does.
template <class Element, class T, class Load>
__device__ void multiply_transposed(const Problem& p, const Load& load) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t memory = ptx::shared_address(shared);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const Work<T> work(p);

  begin<T>(p, work, memory, warp);

  if (warp >= T::kWarps) {
    ptx::give_up_registers<T::kLoaderRegisters>();
    load(work, memory, warp - T::kWarps);
    __syncwarp();
  } else {
    ptx::take_registers<T::kRegisters>();
    TransposedConsumer<Element, T> consumer(p, work, memory, warp);
    touch(p.output);
    ptx::wait_dependencies();
    consumer.run();
  }
  if (p.pair) ptx::cluster_sync();  // the other block may still signal this one
}

}  // namespace
}  // namespace hopper

#define KERNEL(name, Element, ...)                                                               \
  extern "C" __global__ void __launch_bounds__(hopper::TransposedTile<__VA_ARGS__>::kThreads, 1) \
      name(const __grid_constant__ hopper::Problem p) {                                          \
    const auto load = [&](const auto& work, uint32_t memory, int warp) {                         \
      if (warp == 0) hopper::load_x(p, work, memory);                                            \
      if (warp == 1) hopper::load_w_rows(p, work, memory);                                       \
    };                                                                                           \
    hopper::multiply_transposed<Element, hopper::TransposedTile<__VA_ARGS__>>(p, load);          \
  }
#define KERNELS(type, Element)                                \
  KERNEL(hopper_##type##_80x128_transposed, Element, 80, 7)   \
  KERNEL(hopper_##type##_96x128_transposed, Element, 96, 7)   \
  KERNEL(hopper_##type##_112x128_transposed, Element, 112, 6) \
  KERNEL(hopper_##type##_128x128_transposed, Element, 128, 6) \
  KERNEL(hopper_##type##_144x128_transposed, Element, 144, 5) \
  KERNEL(hopper_##type##_160x128_transposed, Element, 160, 5) \
  KERNEL(hopper_##type##_176x128_transposed, Element, 176, 4) \
  KERNEL(hopper_##type##_192x128_transposed, Element, 192, 4) \
  KERNEL(hopper_##type##_208x128_transposed, Element, 208, 4)

KERNELS(fp16, __half)
KERNELS(bf16, __nv_bfloat16)

#define CONV_KERNEL(name, Element, ...)                                                                  \
  extern "C" __global__ void __launch_bounds__(hopper::TransposedTile<__VA_ARGS__>::kThreads, 1)         \
      name(const __grid_constant__ hopper::Problem p, const __grid_constant__ hopper::Windows windows) { \
    const auto load = [&](const auto& work, uint32_t memory, int warp) {                                 \
      if (warp == 0) hopper::load_x(p, windows, work, memory);                                           \
      if (warp == 1) hopper::load_w(p, work, memory);                                                    \
    };                                                                                                   \
    hopper::multiply_transposed<Element, hopper::TransposedTile<__VA_ARGS__>>(p, load);                  \
  }
#define CONV_KERNELS(type, Element)                              \
  CONV_KERNEL(conv_##type##_192x128_transposed, Element, 192, 4) \
  CONV_KERNEL(conv_##type##_96x128_transposed, Element, 96, 7)

CONV_KERNELS(fp16, __half)
CONV_KERNELS(bf16, __nv_bfloat16)
