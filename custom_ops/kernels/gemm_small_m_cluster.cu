// DeftGemm for few rows of X where clusters are to be had (sm_90 and newer): the weights are read once, X is
// read by blocks of 128 output features, and the K axis is shared out among the blocks of a cluster.
//
// W is the left operand of mma.m16n8k16 and Xᵀ the right one. The order of k within a product is free as long
// as both sides agree, so a thread multiplies 16 consecutive bytes of W without any exchange: lane (g, t)
// takes bytes t * 16 ... of rows g and g + 8, and the same k of row g of X. Tiles come through asynchronous
// copies, several stages ahead, in rows of 128 bytes of W; pieces of 16 bytes are exchanged within odd rows,
// so that the eight threads that read at a time meet different banks.
//
// At the end the blocks of a cluster add their sums in a fixed order, so results do not change between runs.
// Requires K and the row length of X to be multiples of 16, and kept blocks of 16 features or more.
#include <cooperative_groups.h>

#include "epilogue.cuh"
#include "mma_operands.cuh"

namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 256;
constexpr int kRows = 128;  // output features of a block: 16 of each warp
constexpr int kStages = 4;

struct Problem {
  const char* x;
  const char* w;
  const float* scale;
  const float* bias;
  const int* kept;
  const void* residual;
  void* y;
  int M, N, K, features, padded_K, block_shift, decode_shift;
  uint32_t decode_factor;
  float accumulator_scale;
  Epilogue epilogue;
};

// 16 bytes from global to shared memory, zeros if not `inside`.
__device__ void copy_piece(void* shared, const char* global, bool inside) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(inside ? 16 : 0));
}

template <class Operand, int CODE_BYTES, int TERMS, int M_TILES>
__device__ void gemm(const Problem& p) {
  constexpr int kPiece = 16 / CODE_BYTES;  // k of 16 bytes of W
  constexpr int kStep = 8 * kPiece;        // k of a stage
  constexpr int kXPieces = kStep / 8;      // 16-byte pieces of a row of X
  constexpr int kM = 8 * M_TILES;
  struct Stage {
    uint4 w[kRows][8];
    uint4 x[kM][kXPieces];
  };
  extern __shared__ __align__(128) unsigned char memory[];
  auto* stages = reinterpret_cast<Stage*>(memory);
  auto& partial = *reinterpret_cast<float (*)[kRows][kM + 1]>(memory);

  const auto cluster = cg::this_cluster();
  const int rank = cluster.block_rank(), ranks = cluster.num_blocks();
  const int first_row = blockIdx.x / ranks * kRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int steps = (p.K + kStep - 1) / kStep;
  const int own_steps = (steps - rank + ranks - 1) / ranks;

  const auto w_slot = [](int row, int piece) { return piece ^ ((row & 1) << 2); };
  const auto x_slot = [](int row, int piece) { return piece ^ (CODE_BYTES == 1 ? row & 1 : (row & 1) << 2); };

  const auto load = [&](int i) {
    if (i < own_steps) {
      Stage& stage = stages[i % kStages];
      const int start = (i * ranks + rank) * kStep;
#pragma unroll
      for (int q = threadIdx.x; q < kRows * 8; q += kThreads) {
        const int row = q / 8, piece = q % 8, k = start + piece * kPiece;
        const size_t n = min(first_row + row, p.N - 1);
        copy_piece(&stage.w[row][w_slot(row, piece)], p.w + (n * p.padded_K + k) * CODE_BYTES, k < p.K);
      }
      for (int q = threadIdx.x; q < kM * kXPieces; q += kThreads) {
        const int row = q / kXPieces, piece = q % kXPieces, k = start + piece * 8;
        const bool inside = row < p.M && k < p.K;
        int column = inside ? k : 0;
        if (p.kept != nullptr && inside) {
          column = (p.kept[k >> p.block_shift] << p.block_shift) + (k & ((1 << p.block_shift) - 1));
        }
        const size_t m = inside ? row : 0;
        copy_piece(&stage.x[row][x_slot(row, piece)], p.x + (m * p.features + column) * 2, inside);
      }
    }
    asm volatile("cp.async.commit_group;");
  };

  float sum[M_TILES][4] = {};
  for (int i = 0; i < kStages - 1; ++i) load(i);
  for (int i = 0; i < own_steps; ++i) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
    __syncthreads();
    load(i + kStages - 1);  // into the stage that every warp has left
    const Stage& stage = stages[i % kStages];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 piece[2];
      for (int h = 0; h < 2; ++h) {
        const int row = warp * 16 + h * 8 + g;
        piece[h] = stage.w[row][w_slot(row, half * 4 + t)];
      }
      uint32_t x[M_TILES][8 / CODE_BYTES];
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (int q = 0; q < kPiece / 8; ++q) {
          const int row = m * 8 + g;
          const uint4 four = stage.x[row][x_slot(row, (half * 4 + t) * (kPiece / 8) + q)];
          x[m][q * 4] = four.x, x[m][q * 4 + 1] = four.y, x[m][q * 4 + 2] = four.z, x[m][q * 4 + 3] = four.w;
        }
      }
      multiply_piece<Operand, CODE_BYTES, TERMS, M_TILES>(sum, piece, x, p.decode_shift, p.decode_factor);
    }
  }

  asm volatile("cp.async.wait_all;");
  __syncthreads();
  for (int m = 0; m < M_TILES; ++m) {
    for (int i = 0; i < 4; ++i) partial[warp * 16 + i / 2 * 8 + g][m * 8 + t * 2 + i % 2] = sum[m][i];
  }
  cluster.sync();
  const int share = kRows / ranks;  // rows that this block finishes
  for (int i = threadIdx.x; i < share * kM; i += kThreads) {
    const int row = rank * share + i % share, m = i / share, n = first_row + row;
    if (n >= p.N || m >= p.M) continue;
    float z = 0;
    for (int r = 0; r < ranks; ++r) z += *cluster.map_shared_rank(&partial[row][m], r);
    z = z * (p.scale[n] * p.accumulator_scale) + p.bias[n];
    const size_t index = static_cast<size_t>(m) * p.N + n;
    if (p.residual != nullptr) z += load_float(p.residual, index, p.epilogue.y_type);
    store_float(p.y, index, p.epilogue.y_type, activate(p.epilogue, z));
  }
  cluster.sync();  // no block leaves while another still reads its sums
}

}  // namespace

// Parameters in the order of gemm_tensor_core.py. Shared memory: 4 stages of 16 KiB and the step of X.
#define KERNEL(NAME, OPERAND, CODE_BYTES, TERMS, M_TILES)                                                    \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                       \
      NAME##_##M_TILES(const char* x, const char* w, const float* scale, const float* bias, const int* kept, \
                       const void* residual, void* y, int M, int N, int K, int features, int padded_K,       \
                       int block_shift, int decode_shift, unsigned decode_factor, float accumulator_scale,   \
                       int curve, int gated, float slope, float offset, float low, float high, int y_type) { \
    gemm<OPERAND, CODE_BYTES, TERMS, M_TILES>({x,                                                            \
                                               w,                                                            \
                                               scale,                                                        \
                                               bias,                                                         \
                                               kept,                                                         \
                                               residual,                                                     \
                                               y,                                                            \
                                               M,                                                            \
                                               N,                                                            \
                                               K,                                                            \
                                               features,                                                     \
                                               padded_K,                                                     \
                                               block_shift,                                                  \
                                               decode_shift,                                                 \
                                               decode_factor,                                                \
                                               accumulator_scale,                                            \
                                               {curve, gated, slope, offset, low, high, y_type}});           \
  }
#define KERNELS(NAME, OPERAND, CODE_BYTES, TERMS) \
  KERNEL(NAME, OPERAND, CODE_BYTES, TERMS, 1)     \
  KERNEL(NAME, OPERAND, CODE_BYTES, TERMS, 2)

KERNELS(fp16_fp16_1, HalfOperand, 2, 1)
KERNELS(bf16_bf16_1, Bfloat16Operand, 2, 1)
KERNELS(fp16_u8_1, HalfOperand, 1, 1)
KERNELS(bf16_u8_1, Bfloat16Operand, 1, 1)
KERNELS(fp16_u8_2, Bfloat16Operand, 1, 2)
