// The two 16-bit operand types of mma.m16n8k16 with float32 sums, and how deft8 codes become either.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

struct HalfOperand {
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  // the value is left 2^(15 - bias) too small, for the accumulator's scale to mend
  static __device__ uint32_t rescale(uint32_t pair, uint32_t) { return pair; }
};

struct Bfloat16Operand {
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
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

// The left operand of product j from the 16 bytes that a thread holds of rows g and g + 8.
template <class Operand, int CODE_BYTES>
__device__ void left_operand(uint32_t (&a)[4], const uint4 (&piece)[2], int j, int shift, uint32_t factor) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(&piece[h]);
    if constexpr (CODE_BYTES == 1) {
      a[h] = decode<Operand>(__byte_perm(words[j], 0, 0x1404), shift, factor);
      a[h + 2] = decode<Operand>(__byte_perm(words[j], 0, 0x3424), shift, factor);
    } else {
      a[h] = words[j * 2];
      a[h + 2] = words[j * 2 + 1];
    }
  }
}

// sum += W · Xᵀ for the 16 bytes of W a thread holds and the same k of X.
template <class Operand, int CODE_BYTES, int M_TILES>
__device__ void multiply_piece(float (&sum)[M_TILES][4], const uint4 (&piece)[2],
                               const uint32_t (&x)[M_TILES][8 / CODE_BYTES], int shift, uint32_t factor) {
#pragma unroll
  for (int j = 0; j < 4 / CODE_BYTES; ++j) {
    uint32_t a[4];
    left_operand<Operand, CODE_BYTES>(a, piece, j, shift, factor);
#pragma unroll
    for (int m = 0; m < M_TILES; ++m) {
      const uint32_t b[2] = {x[m][j * 2], x[m][j * 2 + 1]};
      Operand::multiply(sum[m], a, b);
    }
  }
}
