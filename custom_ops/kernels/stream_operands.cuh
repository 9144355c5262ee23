// The operands of mma.m16n8k16 as gemm_stream.cu makes them from codes and from X.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "mma_operands.cuh"

// Codes of W to the left operand, for every E at run time. A code's magnitude, shifted until its exponent's
// lowest bit meets the target's, is a 16-bit float too small by a power of two, subnormals included (see
// decode.py). A pair holds codes 0 and 2 of a word, or 1 and 3, and X is laid out the same way: so one shift
// puts the magnitudes of both in place, and one selection by bits adds the signs. Two of the six instructions
// are multiplications by powers of two: they go to another pipe than shifts and logic.
template <class Operand, int CODE_BYTES>
struct Decoder {
  int shift;
  uint32_t left, signs, magnitudes, factor;

  // shift 0 leaves the signs where they belong, as parts of what is selected
  __device__ Decoder(int shift, uint32_t factor)
      : shift(shift),
        left(256u >> shift),
        signs(shift == 0 ? 0 : 0x80808080u),
        magnitudes(shift == 0 ? 0xff00ff00u : 0x7f007f00u >> shift),
        factor(factor) {}

  // Bits of `signs` that are no signs of this pair lie within the magnitudes, where they are not selected.
  // As one instruction: the compiler would make two of it, to share nothing.
  __device__ uint32_t pair(uint32_t shifted, uint32_t signs) const {
    uint32_t selected;
    asm("lop3.b32 %0, %1, %2, %3, 0xe2;" : "=r"(selected) : "r"(shifted), "r"(magnitudes), "r"(signs));
    return Operand::rescale(selected, factor);
  }

  // Codes 0 and 2 of a word, and codes 1 and 3.
  __device__ void pairs(uint32_t word, uint32_t& even, uint32_t& odd) const {
    const uint32_t odd_signs = word & signs;
    even = pair(word * left, odd_signs * 256);
    odd = pair(word >> shift, odd_signs);
  }

  // of product j, from the 16 bytes that a thread holds of rows g and g + 8
  __device__ void left_operand(uint32_t (&a)[4], const uint4 (&piece)[2], int j) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t words[4] = {piece[h].x, piece[h].y, piece[h].z, piece[h].w};
      if constexpr (CODE_BYTES == 1) {
        pairs(words[j], a[h], a[h + 2]);
      } else {
        a[h] = words[j * 2];
        a[h + 2] = words[j * 2 + 1];
      }
    }
  }
};

// Eight neighbouring elements of a row of X.
template <class T>
struct XPiece {
  uint4 raw;

  // Zeros if not `wanted`. Past the first-level cache: this kernel may have started before its X was written,
  // so a line there may be older.
  __device__ void load(const T* source, bool wanted) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %5, 0;\n mov.b32 %0, 0;\n mov.b32 %1, 0;\n mov.b32 %2, 0;\n"
        " mov.b32 %3, 0;\n @p ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
        : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
        : "l"(source), "r"(static_cast<int>(wanted))
        : "memory");
  }

  // Pairs of elements 0 and 2, 1 and 3 of four if ALTERNATE.
  template <bool ALTERNATE>
  __device__ uint4 ordered() const {
    if constexpr (!ALTERNATE) return raw;
    return {__byte_perm(raw.x, raw.y, 0x5410), __byte_perm(raw.x, raw.y, 0x7632),
            __byte_perm(raw.z, raw.w, 0x5410), __byte_perm(raw.z, raw.w, 0x7632)};
  }
};
