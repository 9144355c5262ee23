// DeftGemm of format fp8 on Hopper: Y = activation((X8 · W8ᵀ) * power * scale + bias + residual), both operands
// e4m3, X8 (M, Kp) made by round_rows.cu with a power of two for each row.
//
// As gemm_hopper.cu, whose loads, work and end these kernels share: to the copy engine two codes are one 16-bit
// element, so that a K step is 128 features in rows of the same 128 bytes.
//
// The tensor core's sums of e4m3 products keep some 14 bits. So a K step is summed there in registers of its own,
// kPiece columns at a time, and then added to the float32 sums of the tile: 8 in 1,024 products are what one sum
// goes through without rounding to nearest. While one warpgroup adds, the other multiplies.
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

  __device__ void multiply(float (&sums)[T::kSums]) {
#pragma unroll 1
    for (int step = 0; step < work_.steps; ++step, ring_.next()) {
      const uint64_t stage = ring_.slot * (T::kStageBytes >> 4);
      ptx::barrier_wait(full<T>(memory_, ring_.slot), ring_.phase);
#pragma unroll
      for (int piece = 0; piece < kTilePieces; ++piece) {
        float part[kSumsOfPiece];
        const uint64_t w = w_ + stage + piece * (kPiece * kRowBytes >> 4);
        wgmma::fence();
#pragma unroll
        for (int i = 0; i < 4; ++i) wgmma::add_e4m3(part, x_ + stage + 2 * i, w + 2 * i, i > 0);
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::settle(part);
        if (piece == kTilePieces - 1) release(ring_.slot);
#pragma unroll
        for (int i = 0; i < kSumsOfPiece; ++i) sums[piece * kSumsOfPiece + i] += part[i];
      }
    }
  }

  // Every warp that multiplies tells every block that fills this stage.
  __device__ void release(int slot) const {
    const int lane = threadIdx.x % 32;
    if (work_.pair) {
      if (lane < 2) ptx::barrier_arrive_at(empty<T>(memory_, slot), work_.first_rank + lane);
    } else if (lane == 0) {
      ptx::barrier_arrive(empty<T>(memory_, slot));
    }
  }

  // Ends 16 rows of a tile.
  __device__ void finish(const float (&sums)[T::kSums], int row, int column) const {
    if (!p_.by_box) {
      finish_units(p_.output, sums, own_unit(), row, column);
    } else if (p_.output.epilogue.y_type == 1) {
      store<1>(sums, row, column);
    } else {
      store<2>(sums, row, column);
    }
  }

  template <int TYPE>
  __device__ void store(const float (&sums)[T::kSums], int row, int column) const {
    switch (finish_of(p_.output.epilogue)) {
      case Finish::kFloor: store_boxes<TYPE, Finish::kFloor>(p_.output, p_.y, sums, own_unit(), row, column); break;
      case Finish::kLine: store_boxes<TYPE, Finish::kLine>(p_.output, p_.y, sums, own_unit(), row, column); break;
      case Finish::kSigmoid: store_boxes<TYPE, Finish::kSigmoid>(p_.output, p_.y, sums, own_unit(), row, column); break;
      case Finish::kErf: store_boxes<TYPE, Finish::kErf>(p_.output, p_.y, sums, own_unit(), row, column); break;
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
  __syncwarp();
  if (work.cluster > 1) {
    ptx::cluster_sync();
  } else {
    __syncthreads();
  }
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
  if (work.cluster > 1) ptx::cluster_sync();  // others may still signal this block
}

}  // namespace
}  // namespace hopper

// Name, blocks on a multiprocessor, columns multiplied at a time, tile.
#define KERNEL(name, blocks, PIECE, ...)                                                    \
  extern "C" __global__ void __launch_bounds__(hopper::Tile<__VA_ARGS__>::kThreads, blocks) \
      name(const __grid_constant__ hopper::Fp8Problem p) {                                  \
    hopper::gemm_fp8<hopper::Tile<__VA_ARGS__>, PIECE>(p);                                  \
  }
KERNEL(hopper_fp8_128x256, 1, 128, 2, 256, 4)
KERNEL(hopper_fp8_128x192, 1, 192, 2, 192, 4)
KERNEL(hopper_fp8_128x128, 1, 128, 2, 128, 6)
KERNEL(hopper_fp8_64x128, 1, 128, 1, 128, 8)
