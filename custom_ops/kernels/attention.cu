// DeftAttention: Y = softmax(Q · Kᵀ * scale + bias) · V for all heads of packed queries, keys and values in
// 16 bits, sums in float32.
//
// A block makes 64 or 128 rows of Y of one head. Its four warps keep 16 or 32 rows of Q and of Y in registers
// and go through the keys 64 at a time: the next 64 rows of K and V come to shared memory meanwhile.
//
// Requires: 16-byte alignment, a head size that is a multiple of 8.
#include "attention.cuh"
#include "mma_operands.cuh"

namespace attention {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;

template <class Element>
struct Operand;
template <>
struct Operand<__half> : HalfOperand {};
template <>
struct Operand<__nv_bfloat16> : Bfloat16Operand {};

// Four 8 by 8 matrices, transposed; see ptx::load_matrices.
__device__ inline void load_transposed(uint32_t shared, uint32_t (&d)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared)
               : "memory");
}

// One head, in rows of SIZE features, at least as many as a head has. In shared memory a row is 16 bytes
// longer, so that eight of them do not meet in a bank.
template <class Element, int SIZE, int TILES>
class Head {
 public:
  static constexpr int kWarpRows = 16 * TILES;
  static constexpr int kRows = kWarpRows * kWarps;  // of Q and Y, of a block
  static constexpr int kRowBytes = 2 * SIZE + 16;
  static constexpr int kStageBytes = 2 * kKeys * kRowBytes;  // of K and V
  static constexpr int kChunks = SIZE / 8;                   // of 16 bytes

  __device__ Head(const Parameters& p, uint32_t memory)
      : p_(p), place_(p, kRows), memory_(memory), lane_(threadIdx.x % 32), warp_(threadIdx.x / 32) {}

  __device__ void run() {
    load(place_.queries, place_.stride, memory_, place_.first, kRows);
    if (rotates()) {
      load(place_.rotary, p_.head_size, stage(1), place_.first, kRows);
      ptx::wait_copies();
      turn<kRows>(memory_, stage(1));
      __syncthreads();
      load_queries();
      __syncthreads();
      load_turns(0);
    }
    load_keys(0);
    ptx::commit_copies();
    const int steps = (place_.keys_end + kKeys - 1) / kKeys;
    for (int step = 0; step < steps; ++step) {
      if (step + 1 < steps) load_keys(step + 1);
      ptx::commit_copies();
      ptx::wait_copy_groups<1>();
      if (rotates()) {
        turn<kKeys>(stage(step), memory_);
        if (step + 1 < steps) load_turns(step + 1);
        ptx::commit_copies();
      }
      __syncthreads();
      if (step == 0 && !rotates()) load_queries();
      if (own_row() < p_.length) add(step);
      __syncthreads();
    }
    if (own_row() < p_.length) store();
  }

 private:
  __device__ uint32_t stage(int step) const { return memory_ + kRows * kRowBytes + step % 2 * kStageBytes; }
  __device__ int own_row() const { return place_.first + kWarpRows * warp_; }
  __device__ bool rotates() const { return p_.rotary != nullptr; }

  // `count` rows from `first` on to shared memory, zeros beyond the sequence and the head.
  __device__ void load(const Element* from, long long stride, uint32_t to, int first, int count) const {
    for (int i = threadIdx.x; i < count * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool inside = first + row < p_.length && 8 * chunk < p_.head_size;
      const Element* at = inside ? from + (first + row) * stride + 8 * chunk : from;
      ptx::copy_16(to + row * kRowBytes + 16 * chunk, at, inside);
    }
  }
  __device__ void load_keys(int step) const {
    load(place_.keys, place_.stride, stage(step), kKeys * step, kKeys);
    load(place_.values, place_.stride, stage(step) + kKeys * kRowBytes, kKeys * step, kKeys);
  }
  // To the place of the queries, which are in registers.
  __device__ void load_turns(int step) const {
    load(place_.rotary, p_.head_size, memory_, kKeys * step, kKeys);
  }

  // This thread's copies have arrived.
  template <int ROWS>
  __device__ void turn(uint32_t rows, uint32_t by) const {
    const auto row_places = [&](int row, int chunk) { return rows + row * kRowBytes + 16 * chunk; };
    const auto turn_places = [&](int row, int chunk) { return by + row * kRowBytes + 16 * chunk; };
    rotate<Element, ROWS, kChunks, kThreads>(p_, row_places, turn_places);
  }

  __device__ void load_queries() {
    const uint32_t at = memory_ + (kWarpRows * warp_ + lane_ % 16) * kRowBytes + lane_ / 16 * 16;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
      for (int k = 0; k < SIZE / 16; ++k) {
        ptx::load_matrices(at + tile * 16 * kRowBytes + 32 * k, queries_[tile][k]);
      }
      rows_[tile].clear();
    }
  }

  // Adds what 64 keys give.
  __device__ void add(int step) {
    float scores[TILES][kKeys / 8][4] = {};
    const uint32_t keys = stage(step) + (lane_ / 16 * 8 + lane_ % 8) * kRowBytes + lane_ / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < SIZE / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        ptx::load_matrices(keys + 16 * n * kRowBytes + 32 * k, b);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) multiply(scores[tile] + 2 * n, queries_[tile][k], b);
      }
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const int row = own_row() + 16 * tile;
      finish_scores<Element>(p_, scores[tile], Bias<Element>(p_, place_, row, kKeys * step), row,
                             kKeys * step);
      rows_[tile].to_powers(scores[tile]);
    }
    const uint32_t values = stage(step) + (kKeys + lane_ % 16) * kRowBytes + lane_ / 16 * 16;
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t a[TILES][4];
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* two = scores[tile][2 * k + i / 2] + i % 2 * 2;
          a[tile][i] = Type<Element>::pack(two[0], two[1]);
        }
      }
#pragma unroll
      for (int n = 0; n < SIZE / 16; ++n) {
        uint32_t b[4];
        load_transposed(values + 16 * k * kRowBytes + 32 * n, b);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) multiply(rows_[tile].sums + 2 * n, a[tile], b);
      }
    }
  }

  // 16 columns.
  static __device__ void multiply(float (*d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    Operand<Element>::multiply(d[0], a, first);
    Operand<Element>::multiply(d[1], a, second);
  }

  // Y through this warp's rows of Q in shared memory, so that whole rows are written.
  __device__ void store() {
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const uint32_t from = memory_ + (kWarpRows * warp_ + 16 * tile) * kRowBytes;
      const auto address = [&](int row, int chunk) { return from + row * kRowBytes + 16 * chunk; };
      rows_[tile].put(address);
      Rows<Element, SIZE>::store(p_, place_, own_row() + 16 * tile, address);
    }
  }

  const Parameters& p_;
  const Place<Element> place_;
  uint32_t memory_;
  int lane_, warp_;
  uint32_t queries_[TILES][SIZE / 16][4];
  Rows<Element, SIZE> rows_[TILES];
};

template <class Element, int SIZE, int TILES>
__device__ void attend(const Parameters& p) {
  extern __shared__ __align__(128) unsigned char shared[];
#if __CUDA_ARCH__ >= 900
  ptx::launch_dependents();
  ptx::wait_dependencies();
#endif
  Head<Element, SIZE, TILES>(p, ptx::shared_address(shared)).run();
}

}  // namespace
}  // namespace attention

#define ATTENTION(NAME, ELEMENT, SIZE, TILES)                                                \
  extern "C" __global__ void __launch_bounds__(attention::kThreads)                          \
      attention_##NAME##_##SIZE##_##TILES(const __grid_constant__ attention::Parameters p) { \
    attention::attend<ELEMENT, SIZE, TILES>(p);                                              \
  }
#define ATTENTIONS(NAME, ELEMENT) \
  ATTENTION(NAME, ELEMENT, 32, 1) \
  ATTENTION(NAME, ELEMENT, 32, 2) \
  ATTENTION(NAME, ELEMENT, 64, 1) \
  ATTENTION(NAME, ELEMENT, 64, 2) \
  ATTENTION(NAME, ELEMENT, 128, 1)

ATTENTIONS(fp16, __half)
ATTENTIONS(bf16, __nv_bfloat16)
