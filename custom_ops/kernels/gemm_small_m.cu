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

namespace {

constexpr int kWarps = 8;

struct HalfOperand {
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  // the value is left 2^(15 - bias) too small, for the accumulator's scale to mend
  static __device__ uint32_t rescale(uint32_t pair, uint32_t) { return pair; }
};

struct Bfloat16Operand {
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  static __device__ uint32_t rescale(uint32_t pair, uint32_t factor) {
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(pair), "r"(factor), "r"(0x80008000u));
    return result;
  }
};

// Two deft8 codes in the upper bytes of two 16-bit halves to two 16-bit floats; see decode.py.
template <class Operand>
__device__ uint32_t decode(uint32_t upper_bytes, int shift, uint32_t factor) {
  const uint32_t magnitude = (upper_bytes & 0x7f007f00u) >> shift;
  return Operand::rescale((upper_bytes & 0x80008000u) | magnitude, factor);
}

// The bfloat16 nearest to two halves, and what is left of them, which bfloat16 holds exactly.
__device__ void split(uint32_t halves, uint32_t& high, uint32_t& low) {
  const float2 value = __half22float2(reinterpret_cast<const __half2&>(halves));
  const __nv_bfloat162 near = __floats2bfloat162_rn(value.x, value.y);
  const float2 rounded = __bfloat1622float2(near);
  const __nv_bfloat162 rest = __floats2bfloat162_rn(value.x - rounded.x, value.y - rounded.y);
  high = reinterpret_cast<const uint32_t&>(near);
  low = reinterpret_cast<const uint32_t&>(rest);
}

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

template <class Operand, int CODE_BYTES, int TERMS, int M_TILES, int ROW_TILES>
__device__ void gemm(const Problem& p) {
  constexpr int kPiece = 16 / CODE_BYTES;                               // k of 16 bytes of W
  constexpr int kProducts = kPiece / 4;                                 // mma of one piece
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
      for (int j = 0; j < kProducts; ++j) {
        uint32_t b[TERMS][M_TILES][2];
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) {
          for (int i = 0; i < 2; ++i) {
            if constexpr (TERMS == 2) {
              split(x[m][j * 2 + i], b[0][m][i], b[1][m][i]);
            } else {
              b[0][m][i] = x[m][j * 2 + i];
            }
          }
        }
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r) {
          uint32_t a[4];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const uint32_t* words = reinterpret_cast<const uint32_t*>(&pieces[s][r][h]);
            if constexpr (CODE_BYTES == 1) {
              a[h] = decode<Operand>(__byte_perm(words[j], 0, 0x1404), p.decode_shift, p.decode_factor);
              a[h + 2] = decode<Operand>(__byte_perm(words[j], 0, 0x3424), p.decode_shift, p.decode_factor);
            } else {
              a[h] = words[j * 2];
              a[h + 2] = words[j * 2 + 1];
            }
          }
#pragma unroll
          for (int term = TERMS - 1; term >= 0; --term) {
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) Operand::multiply(sums[r][m], a, b[term][m]);
          }
        }
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
#define KERNEL(NAME, OPERAND, CODE_BYTES, TERMS, M_TILES, ROW_TILES)                                        \
  extern "C" __global__ void __launch_bounds__(256) NAME##_##M_TILES##_##ROW_TILES(                         \
      const char* x, const char* w, const float* scale, const float* bias, const int* kept,                 \
      const void* residual, void* y, int M, int N, int K, int features, int padded_K, int block_shift,      \
      int decode_shift, unsigned decode_factor, float accumulator_scale, int curve, int gated, float slope, \
      float offset, float low, float high, int y_type) {                                                    \
    gemm<OPERAND, CODE_BYTES, TERMS, M_TILES, ROW_TILES>(                                                   \
        {x,                                                                                                 \
         w,                                                                                                 \
         scale,                                                                                             \
         bias,                                                                                              \
         kept,                                                                                              \
         residual,                                                                                          \
         y,                                                                                                 \
         M,                                                                                                 \
         N,                                                                                                 \
         K,                                                                                                 \
         features,                                                                                          \
         padded_K,                                                                                          \
         block_shift,                                                                                       \
         decode_shift,                                                                                      \
         decode_factor,                                                                                     \
         accumulator_scale,                                                                                 \
         {curve, gated, slope, offset, low, high, y_type}});                                                \
  }
#define KERNELS(NAME, OPERAND, CODE_BYTES, TERMS) \
  KERNEL(NAME, OPERAND, CODE_BYTES, TERMS, 1, 1)  \
  KERNEL(NAME, OPERAND, CODE_BYTES, TERMS, 1, 2)  \
  KERNEL(NAME, OPERAND, CODE_BYTES, TERMS, 1, 4)  \
  KERNEL(NAME, OPERAND, CODE_BYTES, TERMS, 2, 1)  \
  KERNEL(NAME, OPERAND, CODE_BYTES, TERMS, 2, 2)  \
  KERNEL(NAME, OPERAND, CODE_BYTES, TERMS, 2, 4)

KERNELS(fp16_fp16_1, HalfOperand, 2, 1)
KERNELS(bf16_bf16_1, Bfloat16Operand, 2, 1)
KERNELS(fp16_u8_1, HalfOperand, 1, 1)
KERNELS(bf16_u8_1, Bfloat16Operand, 1, 1)
KERNELS(fp16_u8_2, Bfloat16Operand, 1, 2)
