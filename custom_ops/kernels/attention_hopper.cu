// DeftAttention with heads of at most 128 features on Hopper's tensor cores; see attention.cu for others.
//
// A block is one warpgroup and makes 64 rows of Y of one head. Q stays in shared memory; keys and values come
// 64 at a time, the next ones meanwhile, in rows of 128 bytes, swizzled as wgmma reads them: 64 features, and
// behind all rows the other 64. The last step takes as many keys as there are, to 16. Weights go from the
// registers of one product to those of the next. What turns queries and keys comes as they do.
//
// Requires: 16-byte alignment, a head size that is a multiple of 8.
#include "attention.cuh"
#include "wgmma.cuh"

namespace attention {
namespace {

constexpr int kRows = 64, kThreads = 128;
static_assert(kRows == kKeys, "tiles of queries and of keys lie alike");
constexpr int kRowBytes = 128, kPartBytes = kRows * kRowBytes;  // of 64 features

// Products of a warpgroup with sums as in attention.cuh.
template <class Element>
struct Multiply;

#define SUMS_2(d, i)                                                                                \
  "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3]), "+f"(d[i + 1][0]), "+f"(d[i + 1][1]), \
      "+f"(d[i + 1][2]), "+f"(d[i + 1][3])
#define NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NAMES_16 NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_24 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define NAMES_32 NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"

// d = a · bᵀ if not `add`, else d + a · bᵀ; operands in shared memory, k along rows.
#define SCORES(SHAPE_TYPES, PAIRS, COUNT, A, B, ADD, ...)                                                    \
  static __device__ inline void scores(float (&d)[PAIRS][4], uint64_t a, uint64_t b, bool add) {             \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #ADD                                                 \
                 ", 0;\n wgmma.mma_async.sync.aligned." SHAPE_TYPES " {" NAMES_##COUNT "}, %" #A ", %" #B    \
                                                                                       ", p, 1, 1, 0, 0;\n}" \
                 : __VA_ARGS__                                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                              \
  }
// d += a · b: a in registers, b in shared memory, k across its rows.
#define VALUES(SHAPE_TYPES)                                                                    \
  static __device__ inline void values(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) { \
    asm volatile("wgmma.mma_async.sync.aligned." SHAPE_TYPES " {" NAMES_32                     \
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                   \
                 : SUMS_2(d, 0), SUMS_2(d, 2), SUMS_2(d, 4), SUMS_2(d, 6)                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
  }
#define PRODUCTS(TYPES)                                                                                 \
  SCORES("m64n16k16." TYPES, 2, 8, 8, 9, 10, SUMS_2(d, 0))                                              \
  SCORES("m64n32k16." TYPES, 4, 16, 16, 17, 18, SUMS_2(d, 0), SUMS_2(d, 2))                             \
  SCORES("m64n48k16." TYPES, 6, 24, 24, 25, 26, SUMS_2(d, 0), SUMS_2(d, 2), SUMS_2(d, 4))               \
  SCORES("m64n64k16." TYPES, 8, 32, 32, 33, 34, SUMS_2(d, 0), SUMS_2(d, 2), SUMS_2(d, 4), SUMS_2(d, 6)) \
  VALUES("m64n64k16." TYPES)

template <>
struct Multiply<__half> {
  PRODUCTS("f32.f16.f16")
};
template <>
struct Multiply<__nv_bfloat16> {
  PRODUCTS("f32.bf16.bf16")
};

template <int COUNT>
__device__ inline void settle(float (&d)[COUNT][4]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) wgmma::settle(d[i]);
}

// One head, in rows of SIZE features, at least as many as a head has.
template <class Element, int SIZE>
class Head {
 public:
  static constexpr int kParts = SIZE / 64, kChunks = SIZE / 8;  // chunks: of 16 bytes
  static constexpr int kTileBytes = kParts * kPartBytes, kStageBytes = 2 * kTileBytes;

  __device__ Head(const Parameters& p, uint32_t memory)
      : p_(p), place_(p, kRows), memory_(memory), warp_(threadIdx.x / 32) {}

  __device__ void run() {
    load(place_.queries, place_.stride, memory_, place_.first);
    if (rotates()) {
      load(place_.rotary, p_.head_size, turns(1), place_.first);
      ptx::commit_copies();
    }
    load_keys(0);
    ptx::commit_copies();
    rows_.clear();
    if (rotates()) {
      ptx::wait_copy_groups<1>();
      turn(memory_, turns(1));
    }
    const int steps = (place_.keys_end + kKeys - 1) / kKeys;
    for (int step = 0; step < steps; ++step) {
      if (step + 1 < steps) load_keys(step + 1);
      ptx::commit_copies();
      load_bias(step);
      ptx::wait_copy_groups<1>();
      if (rotates()) turn(stage(step), turns(step));
      ptx::fence_async_proxy();
      __syncthreads();
      add_keys(step);
      __syncthreads();
    }
    if (own_row() >= p_.length) return;
    const uint32_t from = memory_ + 16 * warp_ * kRowBytes;
    const auto address = [&](int row, int chunk) { return from + place(row, chunk); };
    rows_.put(address);
    Rows<Element, SIZE>::store(p_, place_, own_row(), address);
  }

 private:
  static __device__ uint32_t place(int row, int chunk) {
    return chunk / 8 * kPartBytes + row * kRowBytes + ((chunk % 8 ^ (row & 7)) << 4);
  }
  __device__ uint32_t stage(int step) const { return memory_ + kTileBytes + step % 2 * kStageBytes; }
  __device__ uint32_t turns(int step) const {
    return memory_ + kTileBytes + 2 * kStageBytes + step % 2 * kTileBytes;
  }
  __device__ int own_row() const { return place_.first + 16 * warp_; }
  __device__ bool rotates() const { return p_.rotary != nullptr; }

  // 64 rows from `first` on to shared memory, zeros beyond the sequence and the head.
  __device__ void load(const Element* from, long long stride, uint32_t to, int first) const {
#pragma unroll
    for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
      const int row = i * (kThreads / kChunks) + threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
      const bool inside = first + row < p_.length && 8 * chunk < p_.head_size;
      const Element* at = inside ? from + (first + row) * stride + 8 * chunk : from;
      ptx::copy_16(to + place(row, chunk), at, inside);
    }
  }
  __device__ void load_keys(int step) const {
    load(place_.keys, place_.stride, stage(step), kKeys * step);
    load(place_.values, place_.stride, stage(step) + kTileBytes, kKeys * step);
    if (rotates()) load(place_.rotary, p_.head_size, turns(step), kKeys * step);
  }

  // What this thread adds to its scores, to registers: on its way while keys are waited for.
  __device__ void load_bias(int step) {
    if (p_.bias == nullptr) return;
    const Bias<Element> bias(p_, place_, own_row(), kKeys * step);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      bias_[n][0] = bias(n, 0);
      bias_[n][1] = p_.bias_row == 0 ? bias_[n][0] : bias(n, 1);
    }
  }

  // This thread's copies have arrived.
  __device__ void turn(uint32_t rows, uint32_t by) const {
    const auto row_places = [&](int row, int chunk) { return rows + place(row, chunk); };
    const auto turn_places = [&](int row, int chunk) { return by + place(row, chunk); };
    rotate<Element, kRows, kChunks, kThreads>(p_, row_places, turn_places);
  }

  __device__ void add_keys(int step) {
    const int left = place_.keys_end - kKeys * step;
    if (left > 48) {
      add<4>(step);
    } else if (left > 32) {
      add<3>(step);
    } else if (left > 16) {
      add<2>(step);
    } else {
      add<1>(step);
    }
  }

  // Adds what 16 COUNT keys give.
  template <int COUNT>
  __device__ void add(int step) {
    float scores[2 * COUNT][4];
    const uint64_t queries = wgmma::descriptor(memory_, kRowBytes, 0);
    const uint64_t keys = wgmma::descriptor(stage(step), kRowBytes, 0);
    wgmma::fence();
#pragma unroll
    for (int k = 0; k < SIZE / 16; ++k) {  // 32 bytes of a row
      const int offset = k / 4 * (kPartBytes >> 4) + k % 4 * 2;
      Multiply<Element>::scores(scores, queries + offset, keys + offset, k > 0);
    }
    wgmma::commit();
    wgmma::wait<0>();
    settle(scores);
    if (own_row() < p_.length) {
      const auto bias = [&](int n, int half) { return bias_[n][half]; };
      finish_scores<Element>(p_, scores, bias, own_row(), kKeys * step);
      rows_.to_powers(scores);
    }
    uint32_t weights[COUNT][4];
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* two = scores[2 * k + i / 2] + i % 2 * 2;
        weights[k][i] = Type<Element>::pack(two[0], two[1]);
      }
    }
    const uint64_t values = wgmma::descriptor(stage(step) + kTileBytes, kRowBytes, 0);
    wgmma::fence();
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {  // 16 rows
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        auto& sums = reinterpret_cast<float (&)[8][4]>(rows_.sums[8 * part]);
        const int offset = part * (kPartBytes >> 4) + k * (16 * kRowBytes >> 4);
        Multiply<Element>::values(sums, weights[k], values + offset);
      }
    }
    wgmma::commit();
    wgmma::wait<0>();
    settle(rows_.sums);
  }

  const Parameters& p_;
  const Place<Element> place_;
  uint32_t memory_;
  int warp_;
  uint32_t bias_[kKeys / 8][2];
  Rows<Element, SIZE> rows_;
};

template <class Element, int SIZE>
__device__ void attend(const Parameters& p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  ptx::launch_dependents();
  ptx::wait_dependencies();
  Head<Element, SIZE>(p, ptx::shared_address(shared)).run();
}

}  // namespace
}  // namespace attention

#define ATTENTION(NAME, ELEMENT, SIZE, BLOCKS)                                            \
  extern "C" __global__ void __launch_bounds__(attention::kThreads, BLOCKS)               \
      attention_##NAME##_hopper_##SIZE(const __grid_constant__ attention::Parameters p) { \
    attention::attend<ELEMENT, SIZE>(p);                                                  \
  }

ATTENTION(fp16, __half, 64, 4)
ATTENTION(bf16, __nv_bfloat16, 64, 4)
ATTENTION(fp16, __half, 128, 2)
ATTENTION(bf16, __nv_bfloat16, 128, 2)
