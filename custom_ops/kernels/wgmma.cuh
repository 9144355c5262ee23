// wgmma: products of a warpgroup (four warps) on Hopper's tensor cores, asynchronous, sums in float32
// registers.
//
//   D (64, N) += A (64, 16) · B (N, 16)ᵀ     16-bit operands in shared memory, both with k running along rows
//
// A may be in registers instead: four pairs of neighbouring k, of row 16 (t / 32) + g and the row 8 below,
// from k = 2 q on, and of the same rows from k = 2 q + 8 on. They must not change until the product is done.
//
// Thread t of the warpgroup, lane (g, q) = (t % 32 / 4, t % 4), holds of D, for each 8 columns j:
//   d[4 j + 0, 1]  row 16 (t / 32) + g,      columns 8 j + 2 q, + 1
//   d[4 j + 2, 3]  row 16 (t / 32) + g + 8,  the same columns
//
// A descriptor tells where and how an operand lies (PTX manual, "Matrix Descriptor Format"): rows of `bytes`
// bytes with a swizzle over as many, 8 rows after 8 rows. To step along k within a row, add to its address.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace wgmma {

// `bytes` a row: 128, 64 or 32, swizzled as the tensor map of that width does; 16: no swizzle, columns of 16
// bytes `column_bytes` apart.
__device__ inline uint64_t descriptor(uint32_t shared, int bytes, int column_bytes) {
  const uint64_t swizzle = bytes == 128 ? 1 : bytes == 64 ? 2 : bytes == 32 ? 3 : 0;
  const uint64_t column = bytes == 16 ? column_bytes >> 4 : 1;
  // in a cluster the upper bits of a shared address tell the block
  return swizzle << 62 | static_cast<uint64_t>(8 * bytes >> 4) << 32 | column << 16 | (shared & 0x3ffff) >> 4;
}

// Before the first product of a group: registers and shared memory written so far are visible to it.
__device__ inline void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all but the last PENDING groups are done.
template <int PENDING>
__device__ inline void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of sums before the wait that makes them ready.
template <int COUNT>
__device__ inline void settle(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d = a · bᵀ if not `add`, else d + a · bᵀ. The element type and N are those of Element and d; a is a
// descriptor or registers.
template <class Element>
struct Product;

#define WGMMA_8(i)                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_32(i) WGMMA_8(i), WGMMA_8(i + 8), WGMMA_8(i + 16), WGMMA_8(i + 24)
#define WGMMA_NAMES_32                                                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_40 WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_NAMES_48 WGMMA_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_NAMES_56 WGMMA_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_NAMES_64 WGMMA_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_72 WGMMA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_NAMES_80 WGMMA_NAMES_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_NAMES_88 WGMMA_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_NAMES_96 WGMMA_NAMES_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_104 WGMMA_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_NAMES_112 WGMMA_NAMES_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_NAMES_120 WGMMA_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_NAMES_128 WGMMA_NAMES_120 ", %120, %121, %122, %123, %124, %125, %126, %127"

// One function: SHAPE_TYPES as in the instruction's name, COUNT sums a thread, A, B, ADD: the next operand
// numbers.
#define WGMMA_FUNCTION(SHAPE_TYPES, COUNT, A, B, ADD, ...)                                   \
  static __device__ inline void add(float (&d)[COUNT], uint64_t a, uint64_t b, bool add) {   \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #ADD                                 \
                 ", 0;\n wgmma.mma_async.sync.aligned." SHAPE_TYPES " {" WGMMA_NAMES_##COUNT \
                 "}, %" #A ", %" #B ", p, 1, 1, 0, 0;\n}"                                    \
                 : __VA_ARGS__                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                              \
  }
// The same with A in registers.
#define WGMMA_LEFT_FUNCTION(SHAPE_TYPES, COUNT, A0, A1, A2, A3, B, ADD, ...)                           \
  static __device__ inline void add(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b, bool add) { \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #ADD                                           \
                 ", 0;\n wgmma.mma_async.sync.aligned." SHAPE_TYPES " {" WGMMA_NAMES_##COUNT           \
                 "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 0;\n}"                \
                 : __VA_ARGS__                                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));    \
  }
#define WGMMA_ALL_SHAPES(TYPES)                                                                            \
  WGMMA_FUNCTION("m64n64k16." TYPES, 32, 32, 33, 34, WGMMA_32(0))                                          \
  WGMMA_FUNCTION("m64n80k16." TYPES, 40, 40, 41, 42, WGMMA_32(0), WGMMA_8(32))                             \
  WGMMA_FUNCTION("m64n96k16." TYPES, 48, 48, 49, 50, WGMMA_32(0), WGMMA_8(32), WGMMA_8(40))                \
  WGMMA_FUNCTION("m64n112k16." TYPES, 56, 56, 57, 58, WGMMA_32(0), WGMMA_8(32), WGMMA_8(40), WGMMA_8(48))  \
  WGMMA_FUNCTION("m64n128k16." TYPES, 64, 64, 65, 66, WGMMA_32(0), WGMMA_32(32))                           \
  WGMMA_FUNCTION("m64n144k16." TYPES, 72, 72, 73, 74, WGMMA_32(0), WGMMA_32(32), WGMMA_8(64))              \
  WGMMA_FUNCTION("m64n160k16." TYPES, 80, 80, 81, 82, WGMMA_32(0), WGMMA_32(32), WGMMA_8(64), WGMMA_8(72)) \
  WGMMA_FUNCTION("m64n176k16." TYPES, 88, 88, 89, 90, WGMMA_32(0), WGMMA_32(32), WGMMA_8(64), WGMMA_8(72), \
                 WGMMA_8(80))                                                                              \
  WGMMA_FUNCTION("m64n192k16." TYPES, 96, 96, 97, 98, WGMMA_32(0), WGMMA_32(32), WGMMA_32(64))             \
  WGMMA_FUNCTION("m64n208k16." TYPES, 104, 104, 105, 106, WGMMA_32(0), WGMMA_32(32), WGMMA_32(64),         \
                 WGMMA_8(96))                                                                              \
  WGMMA_FUNCTION("m64n256k16." TYPES, 128, 128, 129, 130, WGMMA_32(0), WGMMA_32(32), WGMMA_32(64),         \
                 WGMMA_32(96))
#define WGMMA_ALL_LEFT_SHAPES(TYPES)                                                                     \
  WGMMA_LEFT_FUNCTION("m64n64k16." TYPES, 32, 32, 33, 34, 35, 36, 37, WGMMA_32(0))                       \
  WGMMA_LEFT_FUNCTION("m64n128k16." TYPES, 64, 64, 65, 66, 67, 68, 69, WGMMA_32(0), WGMMA_32(32))        \
  WGMMA_LEFT_FUNCTION("m64n192k16." TYPES, 96, 96, 97, 98, 99, 100, 101, WGMMA_32(0), WGMMA_32(32),      \
                      WGMMA_32(64))                                                                      \
  WGMMA_LEFT_FUNCTION("m64n256k16." TYPES, 128, 128, 129, 130, 131, 132, 133, WGMMA_32(0), WGMMA_32(32), \
                      WGMMA_32(64), WGMMA_32(96))

template <>
struct Product<__half> {
  WGMMA_ALL_SHAPES("f32.f16.f16")
  WGMMA_ALL_LEFT_SHAPES("f32.f16.f16")
};

template <>
struct Product<__nv_bfloat16> {
  WGMMA_ALL_SHAPES("f32.bf16.bf16")
  WGMMA_ALL_LEFT_SHAPES("f32.bf16.bf16")
};

}  // namespace wgmma
