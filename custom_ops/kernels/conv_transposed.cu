// DeftConv on Hopper with W as the left operand of wgmma: two warpgroups make 64 output features each of a
// tile of Yᵀ. A product of 192 pixels reads less of shared memory than three of 64 do, fewer warps wait for
// each stage, and scale and bias are two numbers a thread, which it reads while the tile is multiplied.
//
// Loads and the ring of stages are those of gemm_hopper.cu. The end is that of hopper_transposed.cuh, but
// every chunk of a tile has a place of its own in shared memory, so that none waits for another to leave.
//
// Requires: boxes of 64 channels, and no residual where Y leaves in boxes.
#include "hopper_loads.cuh"
#include "hopper_transposed.cuh"
#include "hopper_windows.cuh"
#include "hopper_work.cuh"
#include "wgmma.cuh"

namespace hopper {
namespace {

// The products of wgmma.cuh, and those of 96 pixels.
template <class Element>
struct Product;
#define WGMMA_NAMES_48 \
  WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_96(TYPES) \
  WGMMA_FUNCTION("m64n96k16." TYPES, 48, 48, 49, 50, WGMMA_32(0), WGMMA_8(32), WGMMA_8(40))
template <>
struct Product<__half> : wgmma::Product<__half> {
  using wgmma::Product<__half>::add;
  WGMMA_96("f32.f16.f16")
};
template <>
struct Product<__nv_bfloat16> : wgmma::Product<__nv_bfloat16> {
  using wgmma::Product<__nv_bfloat16>::add;
  WGMMA_96("f32.bf16.bf16")
};

constexpr int kFeatures = 128;  // of a tile

// PIXELS by kFeatures; names as in Tile of hopper_work.cuh.
template <int PIXELS, int STAGES>
struct TransposedTile {
  static constexpr int kRows = PIXELS, kColumns = kFeatures, kStages = STAGES;
  static constexpr int kWarps = 8, kReleases = kWarps, kThreads = 32 * (kWarps + 4);
  static constexpr int kSums = PIXELS / 2;                          // of a thread
  static constexpr int kWarpBytes = 2 * kUnitColumns * PIXELS / 4;  // a quarter of its warpgroup's Y
  static constexpr int kLoaderRegisters = 40, kRegisters = 232;
  static constexpr int kXBytes = kRows * kRowBytes, kWBytes = kColumns * kRowBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kUnits = STAGES * kStageBytes;
  static constexpr int kBarriers = kUnits + kWarps * kWarpBytes;
  // Y leaves in chunks of as many rows: the boxes of its map
  static constexpr int kChunk = PIXELS % kChunkRows == 0 ? kChunkRows : kChunkRows / 2;
  static_assert(PIXELS % kChunk == 0 && 4 * kWarpBytes >= 4 * kUnitColumns * kChunk, "finish_columns");
  static_assert(kBarriers + 8 * (2 * STAGES + 3) <= 227 * 1024, "shared memory of a block");
};

}  // namespace

// As for other tiles, but K is not shared out. Short: a block begins with it.
template <int PIXELS, int STAGES>
struct Work<TransposedTile<PIXELS, STAGES>> {
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
        row_cells((p.output.M + PIXELS - 1) / PIXELS),
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
    *row = r * PIXELS;
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
        Product<Element>::add(sums, w_ + stage + 2 * i, x_ + stage + 2 * i, step > 0 || i > 0);
      }
      wgmma::commit();
      wgmma::wait<1>();
      if (step > 0) release(previous);
      previous = ring_.slot;
      ring_.next();
    }
    wgmma::wait<0>();
    wgmma::settle(sums);
    release(previous);
  }

  // Every warp tells every block that fills this stage.
  __device__ void release(int slot) const {
    const int lane = threadIdx.x % 32;
    if (work_.pair) {
      if (lane < 2) ptx::barrier_arrive_at(empty<T>(memory_, slot), work_.first_rank + lane);
    } else if (lane == 0) {
      ptx::barrier_arrive(empty<T>(memory_, slot));
    }
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

  // To Y's map, whose boxes are (kChunk, 64); no residual.
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
    for (int chunk = 0; chunk < T::kRows / T::kChunk; ++chunk) {
      const uint32_t to = own_chunks() + chunk * (2 * kUnitColumns * T::kChunk);
#pragma unroll
      for (int j = 0; j < T::kChunk / 8; j += 2) {
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* two = sums + chunk * (T::kChunk / 2) + 4 * (j + i / 2) + 2 * (i % 2);
          pairs[i] = finish_pair<kType, FINISH>(p_.output.epilogue, two[0], two[1], i % 2 ? high : low);
        }
        ptx::store_transposed(to + within + j * 8 * 128, pairs[0], pairs[1], pairs[2], pairs[3]);
      }
      ptx::fence_async_proxy();
      warpgroup_sync(warpgroup_);
      if (leads()) {
        ptx::store_box(p_.y, to, row + chunk * T::kChunk, column);
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

template <class Element, class T>
__device__ void convolve(const Problem& p, const Windows& windows) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t memory = ptx::shared_address(shared);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const Work<T> work(p);

  begin<T>(p, work, memory, warp);

  if (warp >= T::kWarps) {
    ptx::give_up_registers<T::kLoaderRegisters>();
    if (warp == T::kWarps) load_x(p, windows, work, memory);
    if (warp == T::kWarps + 1) load_w(p, work, memory);
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

#define KERNEL(name, Element, ...)                                                                       \
  extern "C" __global__ void __launch_bounds__(hopper::TransposedTile<__VA_ARGS__>::kThreads, 1)         \
      name(const __grid_constant__ hopper::Problem p, const __grid_constant__ hopper::Windows windows) { \
    hopper::convolve<Element, hopper::TransposedTile<__VA_ARGS__>>(p, windows);                          \
  }

KERNEL(conv_fp16_192x128_transposed, __half, 192, 4)
KERNEL(conv_fp16_96x128_transposed, __half, 96, 7)
KERNEL(conv_bf16_192x128_transposed, __nv_bfloat16, 192, 4)
KERNEL(conv_bf16_96x128_transposed, __nv_bfloat16, 96, 7)
