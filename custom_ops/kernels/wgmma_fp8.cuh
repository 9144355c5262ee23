// wgmma of 8-bit operands: D (64, N) += A (64, 32) · B (N, 32)ᵀ, both e4m3 in shared memory. D's registers
// and the descriptors are those of wgmma.cuh, a byte an element. Sums within the tensor core keep some 14
// bits: add few products at a time and sum the results in float32.
#pragma once

#include "wgmma.cuh"

namespace wgmma {

#define WGMMA_FP8_FUNCTION(N, COUNT, A, B, ADD, ...)                                                       \
  __device__ inline void add_e4m3(float (&d)[COUNT], uint64_t a, uint64_t b, bool add) {                   \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #ADD ", 0;\n wgmma.mma_async.sync.aligned.m64n" #N \
                 "k32.f32.e4m3.e4m3 {" WGMMA_NAMES_##COUNT "}, %" #A ", %" #B ", p, 1, 1;\n}"              \
                 : __VA_ARGS__                                                                             \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                            \
  }

// d = a · bᵀ if not `add`, else d + a · bᵀ; N is that of d.
WGMMA_FP8_FUNCTION(64, 32, 32, 33, 34, WGMMA_32(0))
WGMMA_FP8_FUNCTION(96, 48, 48, 49, 50, WGMMA_32(0), WGMMA_8(32), WGMMA_8(40))
WGMMA_FP8_FUNCTION(128, 64, 64, 65, 66, WGMMA_32(0), WGMMA_32(32))

}  // namespace wgmma
