// DeftGemm of format fp8 on Hopper: Y = activation((X8 · W8ᵀ) * power * scale + bias + residual), both
// operands e4m3, X8 (M, Kp) made by round_rows.cu with a power of two for each row.
//
// As gemm_hopper.cu, whose loads, work and end these kernels share: to the copy engine two codes are one
// 16-bit element, so that a K step is 128 features in rows of the same 128 bytes. Blocks work alone: sharing
// loads in clusters made no difference.
//
// The tensor core's sums of e4m3 products keep some 14 bits. So a K step is summed there in registers of its
// own, a piece of the tile's columns at a time, and then added to the tile's float32 sums. There are
// registers for two pieces: while one is added, the next is multiplied.
#include "hopper_loads.cuh"
#include "hopper_work.cuh"
#include "wgmma_fp8.cuh"

namespace hopper {
namespace {

constexpr int kSkew = 2;  // stages the second warpgroup starts behind the first

// The kernels' argument; runtime/gemm_hopper_fp8.cpp has the same. Sizes of K count pairs of codes.
struct Fp8Problem {
  Problem problem;
  const float* powers;  // (M,)
};

// PIECE: columns multiplied at a time.
template <class T, int PIECE>
class Fp8Consumer {
 public:
  // K steps in one go. At their end the tensor core pauses: the assembler keeps no product under way across
  // the end of a loop whose registers others read.
  static constexpr int kAtOnce = 4;
  static constexpr int kPiece = PIECE, kSumsOfPiece = PIECE / 2, kTilePieces = T::kColumns / PIECE;

  __device__ Fp8Consumer(const Fp8Problem& p, const Work<T>& work, uint32_t memory, int warp)
      : p_(p.problem), powers_(p.powers), work_(work), memory_(memory), warp_(warp) {
    x_ = wgmma::descriptor(memory + warp / 4 * 64 * kRowBytes, kRowBytes, 0);
    w_ = wgmma::descriptor(memory + T::kXBytes, kRowBytes, 0);
  }

  __device__ void run() {
    if (warp_ >= 4 && work_.steps > kSkew) ptx::barrier_wait(full<T>(memory_, kSkew), 0);
    for (int cell = work_.index; cell < work_.row_cells * work_.column_cells; cell += work_.count) {
      int row, column;
      work_.place(cell, &row, &column);
      row += 16 * warp_;
      prefetch_columns<T::kColumns>(p_.output, column);
      float sums[T::kSums], power[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int mine = row + threadIdx.x % 32 / 4 + 8 * half;
        power[half] = mine < p_.output.M ? powers_[mine] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < T::kSums; ++i) sums[i] = 0.0f;
      multiply(sums);
#pragma unroll
      for (int i = 0; i < T::kSums; ++i) sums[i] *= power[i / 2 % 2];
      finish(sums, row, column);
    }
    if (p_.by_box) ptx::wait_stores_read<0>();
  }

 private:
  __device__ uint32_t own_unit() const { return memory_ + T::kUnits + warp_ * kUnitBytes; }

  using Part = float[kSumsOfPiece];

  // Waits for the next stage and returns its slot.
  __device__ int next_stage() {
    const int slot = ring_.slot;
    ptx::barrier_wait(full<T>(memory_, slot), ring_.phase);
    ring_.next();
    return slot;
  }

  // Starts the product of a K step for one piece.
  __device__ void start(Part& part, int slot, int piece) const {
    const uint64_t stage = slot * (T::kStageBytes >> 4);
    const uint64_t w = w_ + stage + piece * (kPiece * kRowBytes >> 4);
    wgmma::fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma::add_e4m3(part, x_ + stage + 2 * i, w + 2 * i, i > 0);
    wgmma::commit();
  }

  // Adds a piece that is ready.
  __device__ static void add(float (&sums)[T::kSums], Part& part, int piece) {
    wgmma::settle(part);
#pragma unroll
    for (int i = 0; i < kSumsOfPiece; ++i) sums[piece * kSumsOfPiece + i] += part[i];
  }

  // STEPS steps: the product of one piece is under way while the one before it is added, but for the last.
  template <int STEPS>
  __device__ void multiply_steps(float (&sums)[T::kSums]) {
    constexpr int kItems = STEPS * kTilePieces;
    Part part[2];
    int slot[STEPS];
    slot[0] = next_stage();
    start(part[0], slot[0], 0);
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const int step = item / kTilePieces, piece = item % kTilePieces;
      if (item + 1 < kItems) {
        const int next = (item + 1) / kTilePieces;
        if (next > step) slot[next] = next_stage();
        start(part[(item + 1) % 2], slot[next], (item + 1) % kTilePieces);
        wgmma::wait<1>();
      } else {
        wgmma::wait<0>();
      }
      if (piece + 1 == kTilePieces && threadIdx.x % 32 == 0) {
        ptx::barrier_arrive(empty<T>(memory_, slot[step]));
      }
      add(sums, part[item % 2], piece);
    }
  }

  __device__ void multiply(float (&sums)[T::kSums]) {
    int steps = work_.steps;
#pragma unroll 1
    for (; steps >= kAtOnce; steps -= kAtOnce) multiply_steps<kAtOnce>(sums);
#pragma unroll 1
    for (; steps > 0; --steps) multiply_steps<1>(sums);
  }

  // Ends 16 rows of a tile.
  __device__ void finish(const float (&sums)[T::kSums], int row, int column) const {
    if (!p_.by_box) {
      finish_units<T::kPieces>(
          p_.output, own_unit(),
          [&](int unit) { store_unit<kUnitColumns>(own_unit(), sums, unit * (kUnitColumns / 2)); },
          [&](int) { return row; }, [&](int unit) { return column + unit * kUnitColumns; });
    } else if (p_.output.epilogue.y_type == 1) {
      store<1>(sums, row, column);
    } else {
      store<2>(sums, row, column);
    }
  }

  template <int TYPE>
  __device__ void store(const float (&sums)[T::kSums], int row, int column) const {
    switch (finish_of(p_.output.epilogue)) {
      case Finish::kFloor:
        store_boxes<TYPE, Finish::kFloor>(p_.output, p_.y, sums, own_unit(), row, column);
        break;
      case Finish::kLine:
        store_boxes<TYPE, Finish::kLine>(p_.output, p_.y, sums, own_unit(), row, column);
        break;
      case Finish::kSigmoid:
        store_boxes<TYPE, Finish::kSigmoid>(p_.output, p_.y, sums, own_unit(), row, column);
        break;
      case Finish::kGelu:
        store_boxes<TYPE, Finish::kGelu>(p_.output, p_.y, sums, own_unit(), row, column);
        break;
    }
  }

  const Problem& p_;
  const float* powers_;
  const Work<T>& work_;
  uint32_t memory_;
  int warp_;
  uint64_t x_, w_;  // descriptors of the first stage
  Ring<T::kStages> ring_;
};

template <class T, int PIECE>
__device__ void gemm_fp8(const Fp8Problem& fp8) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const Problem& p = fp8.problem;
  const uint32_t memory = ptx::shared_address(shared);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const Work<T> work(p);

  if (warp == T::kWarps && ptx::elect_one()) {
    ptx::prefetch_map(p.x);
    ptx::prefetch_map(p.w);
    if (p.by_box) ptx::prefetch_map(p.y);
    init_barriers<T>(p, memory);
  }
  __syncthreads();
  ptx::launch_dependents();

  if (warp >= T::kWarps) {
    if (T::kMovesRegisters) ptx::give_up_registers<40>();
    if (warp == T::kWarps) {
      load_x(p, work, memory);
    } else if (warp == T::kWarps + 1) {
      load_w(p, work, memory);
    }
    __syncwarp();
  } else {
    if (T::kMovesRegisters) ptx::take_registers<232>();
    ptx::wait_dependencies();
    Fp8Consumer<T, PIECE> consumer(fp8, work, memory, warp);
    consumer.run();
  }
}

}  // namespace
}  // namespace hopper

// Name, blocks on a multiprocessor, columns multiplied at a time, tile.
#define KERNEL(name, blocks, PIECE, ...)                                                    \
  extern "C" __global__ void __launch_bounds__(hopper::Tile<__VA_ARGS__>::kThreads, blocks) \
      name(const __grid_constant__ hopper::Fp8Problem p) {                                  \
    hopper::gemm_fp8<hopper::Tile<__VA_ARGS__>, PIECE>(p);                                  \
  }
KERNEL(hopper_fp8_128x256, 1, 64, 2, 256, 4)
KERNEL(hopper_fp8_128x192, 1, 96, 2, 192, 4)
KERNEL(hopper_fp8_128x128, 1, 128, 2, 128, 6)
KERNEL(hopper_fp8_64x128, 1, 128, 1, 128, 8)
