// DeftGemm for few rows of X: a kernel made for reading the weights once, at the speed of memory.
//
// W is the left operand of mma.m16n8k16 and Xᵀ the right one. The order of k within a product is free as long
// as both sides agree, so a thread multiplies the 16 consecutive bytes of W that it loads, without any
// exchange: lane (g, t) holds bytes t * 16 ... of rows g and g + 8, and the same k of row g of X.
//
// A block of 8 warps makes 16 * ROW_TILES output features of up to 8 * M_TILES rows. The warps share the K
// axis out among themselves; at the end their sums are added in a fixed order, so results do not change
// between runs. Requires K and the row length of X to be multiples of 16, and kept blocks of 16 features or
// more.
#include <cstdint>

#include "epilogue.cuh"
#include "mma_operands.cuh"

namespace {

constexpr int kWarps = 8;

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

template <class Operand, int CODE_BYTES, int M_TILES, int ROW_TILES>
__device__ void gemm(const Problem& p) {
  constexpr int kPiece = 16 / CODE_BYTES;                               // k of 16 bytes of W
  constexpr int kStages = ROW_TILES == 4 ? 2 : ROW_TILES == 2 ? 4 : 8;  // pieces in flight: 64 registers
  constexpr int kStep = 4 * kPiece;                                     // k of one warp's step
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.x * 16 * ROW_TILES;

  const char* rows[ROW_TILES][2];
  for (int r = 0; r < ROW_TILES; ++r) {
    for (int h = 0; h < 2; ++h) {
      const int row = min(first_row + r * 16 + h * 8 + g, p.N - 1);
      rows[r][h] = p.w + static_cast<size_t>(row) * p.padded_K * CODE_BYTES;
    }
  }

  // steps of a warp come in pairs, so that a warp itself reads both halves of every 128-byte line
  const auto step_start = [&](int i) { return ((i / 2 * kWarps + warp) * 2 + i % 2) * kStep + t * kPiece; };
  const int steps = (p.K + 2 * kWarps * kStep - 1) / (2 * kWarps * kStep) * 2;

  uint4 pieces[kStages][ROW_TILES][2];
  const auto load = [&](int i, uint4(&stage)[ROW_TILES][2]) {
    const int k = step_start(i);
    for (int r = 0; r < ROW_TILES; ++r) {
      for (int h = 0; h < 2; ++h) {
        stage[r][h] = make_uint4(0, 0, 0, 0);
        if (k < p.K) stage[r][h] = __ldcs(reinterpret_cast<const uint4*>(rows[r][h] + k * CODE_BYTES));
      }
    }
  };

  float sums[ROW_TILES][M_TILES][4] = {};
#pragma unroll
  for (int s = 0; s < kStages; ++s) load(s, pieces[s]);
  for (int base = 0; base < steps; base += kStages) {
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      const int k = step_start(base + s);
      int column = k;
      if (p.kept != nullptr && k < p.K) {
        column = (p.kept[k >> p.block_shift] << p.block_shift) + (k & ((1 << p.block_shift) - 1));
      }
      uint32_t x[M_TILES][kPiece / 2];
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
        const int row = m * 8 + g;
        const bool inside = row < p.M && k < p.K;
        const auto* source =
            reinterpret_cast<const uint4*>(p.x + (static_cast<size_t>(row) * p.features + column) * 2);
#pragma unroll
        for (int q = 0; q < kPiece / 8; ++q) {
          const uint4 four = inside ? __ldg(source + q) : make_uint4(0, 0, 0, 0);
          x[m][q * 4] = four.x, x[m][q * 4 + 1] = four.y, x[m][q * 4 + 2] = four.z, x[m][q * 4 + 3] = four.w;
        }
      }
#pragma unroll
      for (int r = 0; r < ROW_TILES; ++r) {
        multiply_piece<Operand, CODE_BYTES, M_TILES>(sums[r], pieces[s][r], x, p.decode_shift,
                                                     p.decode_factor);
      }
      load(base + s + kStages, pieces[s]);
    }
  }

  __shared__ float partial[kWarps][ROW_TILES * 16][M_TILES * 8 + 1];
  for (int r = 0; r < ROW_TILES; ++r) {
    for (int m = 0; m < M_TILES; ++m) {
      for (int i = 0; i < 4; ++i)
        partial[warp][r * 16 + i / 2 * 8 + g][m * 8 + t * 2 + i % 2] = sums[r][m][i];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < ROW_TILES * 16 * M_TILES * 8; i += kWarps * 32) {
    const int row = i % (ROW_TILES * 16), m = i / (ROW_TILES * 16), n = first_row + row;
    if (n >= p.N || m >= p.M) continue;
    float z = 0;
    for (int w = 0; w < kWarps; ++w) z += partial[w][row][m];
    z = z * (p.scale[n] * p.accumulator_scale) + p.bias[n];
    const size_t index = static_cast<size_t>(m) * p.N + n;
    if (p.residual != nullptr) z += load_float(p.residual, index, p.epilogue.y_type);
    store_float(p.y, index, p.epilogue.y_type, activate(p.epilogue, z));
  }
}

}  // namespace

// Parameters in the order of gemm_tensor_core.py.
#define KERNEL(NAME, OPERAND, CODE_BYTES, M_TILES, ROW_TILES)                                               \
  extern "C" __global__ void __launch_bounds__(256) NAME##_##M_TILES##_##ROW_TILES(                         \
      const char* x, const char* w, const float* scale, const float* bias, const int* kept,                 \
      const void* residual, void* y, int M, int N, int K, int features, int padded_K, int block_shift,      \
      int decode_shift, unsigned decode_factor, float accumulator_scale, int curve, int gated, float slope, \
      float offset, float low, float high, int y_type) {                                                    \
    gemm<OPERAND, CODE_BYTES, M_TILES, ROW_TILES>({x,                                                       \
                                                   w,                                                       \
                                                   scale,                                                   \
                                                   bias,                                                    \
                                                   kept,                                                    \
                                                   residual,                                                \
                                                   y,                                                       \
                                                   M,                                                       \
                                                   N,                                                       \
                                                   K,                                                       \
                                                   features,                                                \
                                                   padded_K,                                                \
                                                   block_shift,                                             \
                                                   decode_shift,                                            \
                                                   decode_factor,                                           \
                                                   accumulator_scale,                                       \
                                                   {curve, gated, slope, offset, low, high, y_type}});      \
  }
#define KERNELS(NAME, OPERAND, CODE_BYTES) \
  KERNEL(NAME, OPERAND, CODE_BYTES, 1, 1)  \
  KERNEL(NAME, OPERAND, CODE_BYTES, 1, 2)  \
  KERNEL(NAME, OPERAND, CODE_BYTES, 1, 4)  \
  KERNEL(NAME, OPERAND, CODE_BYTES, 2, 1)  \
  KERNEL(NAME, OPERAND, CODE_BYTES, 2, 2)  \
  KERNEL(NAME, OPERAND, CODE_BYTES, 2, 4)

KERNELS(fp16_fp16, HalfOperand, 2)
KERNELS(bf16_bf16, Bfloat16Operand, 2)
KERNELS(fp16_u8, HalfOperand, 1)
KERNELS(bf16_u8, Bfloat16Operand, 1)
