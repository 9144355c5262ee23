// DeftMlp: a chain of small fully connected layers in one launch (Müller et al. 2021, "Real-time Neural
// Radiance Caching for Path Tracing": fully fused networks). What lies between two layers never leaves shared
// memory.
//
// A cluster of blocks takes 16 * M_TILES rows of X through all layers (before compute capability 9.0 a single
// block). Every block holds those rows of a layer's input, and makes its share of the layer's output
// features: a warp multiplies for 8 of them at a time, over all of K, and sends what it gets to every block
// of the cluster, whose barrier counts the bytes. No warp waits for another but by that barrier. The buffers
// of input alternate: whoever has all of a layer's input knows that all have read the last one's.
//
// A warp's weights are one stream through all layers, in the order and the lanes in which they are
// multiplied. Each lane brings its own 16 bytes of every step into a ring and reads them back itself, so the
// ring has no barriers. It does not depend on X: it fills before the kernel waits for the one ahead of it in
// the stream.
//
// X is the left operand of mma.m16n8k16 and Wᵀ the right one. In a buffer of input, 8 features of all rows
// lie side by side: what a warp sends is one piece, and rows that are read together are in different banks.
// Sums are added in a fixed order.
#include <cstdint>

#include "activate_all.cuh"
#include "early_start.cuh"
#include "mma_operands.cuh"
#include "ptx_cluster.cuh"
#include "ptx_hopper.cuh"

namespace {

// steps in a warp's ring: a power of two
#if __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
constexpr int kRing = 32;
#else
constexpr int kRing = 16;
#endif
constexpr int kStepBytes = 512;  // 8 output features of 32 inputs, 16 bytes a lane
constexpr int kStepInputs = 32;
constexpr int kThreads = 256;  // all of them bring X

// One layer; runtime/cuda_mlp.cpp has the same.
struct Layer {
  int steps;   // K / 32, rounded up
  int groups;  // of 8 output features that each block makes
  Epilogue epilogue;
};

// The kernels' argument; runtime/cuda_mlp.cpp has the same.
struct Problem {
  const void* x;
  void* y;
  const Layer* layers;
  const char* stream;  // of each warp of each block of a cluster in turn
  const int* starts;   // where a warp's stream begins, in steps, and where the last one ends
  int64_t M;
  int K, N;  // of the first layer, of the last one
  int count;
  int cluster;         // blocks: a power of two
  int warps;           // of a block, that multiply
  int x_type, y_type;  // of the ends, as in epilogue.cuh
  int width[2];        // features that the two buffers of input hold
};

template <class Operand>
__device__ uint32_t pack(float low, float high);
template <>
__device__ uint32_t pack<HalfOperand>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ uint32_t pack<Bfloat16Operand>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ void store_16(uint32_t shared, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

#if __CUDA_ARCH__ >= 900
// 16 bytes to `to` in another block of the cluster, asynchronously; completes on `barrier` there.
__device__ void store_16_at(uint32_t to, const uint4& v, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
      : "memory");
}
#endif

// One lane's part of a warp's stream.
struct Ring {
  const char* source;  // the next step to bring
  uint32_t place;      // of the lane in the ring's first slot
  int left;            // steps to bring
  int brought, taken;

  __device__ void bring_one() {
    if (left > 0) ptx::copy_16(place + brought % kRing * kStepBytes, source, true);
    ptx::commit_copies();
    ++brought, --left, source += kStepBytes;
  }
  template <int COUNT>
  __device__ void bring() {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) bring_one();
  }
  // For no more steps than the last wait was for.
  __device__ uint4 take() { return ptx::load_shared_16(place + taken++ % kRing * kStepBytes); }
};

template <class Operand, int M_TILES>
struct Kernel {
  static constexpr int kRows = 16 * M_TILES;
  static constexpr int kPieceBytes = kRows * 16;  // of 8 features of all rows
  static constexpr int kBatch = 8;                // steps whose weights are in registers
  static constexpr int kSums = 4 / M_TILES;       // that do not wait for each other

  using Sums = float[kSums][M_TILES][4];

  const Problem& p;
  uint32_t first, second;  // the buffers of input
  uint32_t barriers;       // one for each buffer
  const Layer* layers;
  int rank, warp, lane;
  int rows;  // that exist
  Ring ring;

  // Layer i's input, and the barrier that its bytes complete on.
  __device__ uint32_t input(int i) const { return i % 2 == 0 ? first : second; }
  __device__ uint32_t full(int i) const { return barriers + i % 2 * 8; }
  __device__ int64_t top() const { return blockIdx.x / p.cluster * static_cast<int64_t>(kRows); }

  // Layer i's input may come: its barrier counts the bytes, and all warps of this block, so that none of them
  // can miss a phase.
  __device__ void expect(int i) const {
#if __CUDA_ARCH__ >= 900
    if (i >= p.count || lane != 0) return;
    if (warp != 0) return ptx::barrier_arrive(full(i));
    ptx::barrier_arrive_expect(full(i), rows * layers[i - 1].groups * p.cluster * 8 * 2);
#endif
  }

  // Until all of layer i's input is here; for the first one, until the other blocks can be sent to.
  __device__ void wait_input(int i) const {
#if __CUDA_ARCH__ >= 900
    if (p.cluster > 1) {
      if (i == 0) return ptx::cluster_wait();
      return ptx::barrier_wait(full(i), (i - 1) / 2 & 1);
    }
#endif
    if (i > 0) ptx::named_barrier_sync(1, 32 * p.warps);
  }

  // An element of X in 16 bits.
  __device__ uint32_t element(int64_t index) const {
    if (p.x_type != 0) return static_cast<const unsigned short*>(p.x)[index];
    return pack<Operand>(static_cast<const float*>(p.x)[index], 0);
  }

  // The rows of X, with zeros behind their features, into the first buffer.
  __device__ void load_x() const {
    const int pieces = layers[0].steps * (kStepInputs / 8);
    const bool whole = p.x_type != 0 && p.K % 8 == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < kRows * pieces; i += kThreads) {
      const int row = i % kRows, k = i / kRows * 8, wanted = p.K - k;
      if (row >= rows) continue;
      const int64_t from = (top() + row) * p.K + k;
      uint4 piece = make_uint4(0, 0, 0, 0);
      if (whole) {
        if (wanted > 0)
          piece = *reinterpret_cast<const uint4*>(static_cast<const unsigned short*>(p.x) + from);
      } else {
        uint32_t pairs[4] = {};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (j < wanted) pairs[j / 2] |= element(from + j) << 16 * (j % 2);
        }
        piece = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      }
      store_16(first + i * 16, piece);
    }
  }

  // The next weights, of kBatch steps or of the `count` that there are.
  template <bool FULL>
  __device__ void take(uint4 (&w)[kBatch], int count) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (!FULL && j >= count) break;
      w[j] = ring.take();
    }
  }

  // Multiplies them by the input from `x` on: a lane's address.
  template <bool FULL>
  __device__ void multiply(Sums& sums, const uint4 (&w)[kBatch], uint32_t x, int count) const {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (!FULL && j >= count) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t b[2] = {half == 0 ? w[j].x : w[j].z, half == 0 ? w[j].y : w[j].w};
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) {
          uint32_t a[4];
          ptx::load_matrices(x + (j * 4 + half * 2) * kPieceBytes + m * 256, a);
          Operand::multiply(sums[(j * 2 + half) % kSums][m], a, b);
        }
      }
    }
  }

  // 8 features of 16 rows to every block: of a group of four lanes two gather row g, two row g + 8, and of
  // those two each sends to every other block.
  __device__ void send(int i, int m, int column, uint32_t upper, uint32_t lower) const {
    const bool odd = lane & 1, high = lane & 2;
    const uint32_t got = __shfl_xor_sync(0xffffffff, odd ? upper : lower, 1);
    const uint32_t a = odd ? got : upper, b = odd ? lower : got;
    const uint32_t c = __shfl_xor_sync(0xffffffff, a, 2), d = __shfl_xor_sync(0xffffffff, b, 2);
    const uint4 piece = high ? make_uint4(c, d, a, b) : make_uint4(a, b, c, d);
    const int row = m * 16 + lane / 4 + (odd ? 8 : 0);
    if (row >= rows) return;
    const uint32_t place = input(i + 1) + column / 8 * kPieceBytes + row * 16;
#if __CUDA_ARCH__ >= 900
    if (p.cluster > 1) {
#pragma unroll 4
      for (int r = high ? 1 : 0; r < p.cluster; r += 2) {
        const int to = (rank + r) & (p.cluster - 1);
        store_16_at(ptx::address_at(place, to), piece, ptx::address_at(full(i + 1), to));
      }
      return;
    }
#endif
    if (!high) store_16(place, piece);
  }

  // To Y, two features of rows g and g + 8.
  __device__ void store(int m, int column, const float (&z)[4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = m * 16 + lane / 4 + j / 2 * 8, feature = column + j % 2;
      if (row < rows && feature < p.N) store_float(p.y, (top() + row) * p.N + feature, p.y_type, z[j]);
    }
  }

  __device__ void finish(int i, int group, const Epilogue& epilogue, const Sums& sums,
                         const uint4& constants) const {
    const int column = (group * p.cluster + rank) * 8;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m) {
      float z[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        z[j] = sums[0][m][j];
        if constexpr (kSums > 1) z[j] += sums[1][m][j];
        if constexpr (kSums > 2) z[j] += sums[2][m][j] + sums[3][m][j];
        const uint32_t scale = j % 2 == 0 ? constants.x : constants.y;
        const uint32_t bias = j % 2 == 0 ? constants.z : constants.w;
        z[j] = z[j] * __uint_as_float(scale) + __uint_as_float(bias);
      }
      activate_all(epilogue, z);
      if (i + 1 < p.count) {
        send(i, m, column, pack<Operand>(z[0], z[1]), pack<Operand>(z[2], z[3]));
      } else {
        store(m, column + lane % 4 * 2, z);
      }
    }
  }

  // Fills the ring again.
  __device__ void bring(int taken) {
    if (taken == kBatch + 1) return ring.bring<kBatch + 1>();
    for (int i = 0; i < taken; ++i) ring.bring_one();
  }

  // From the wait for its input to the sending of its output, the way is kept short.
  __device__ void make_layer(int i) {
    const int steps = layers[i].steps, groups = layers[i].groups;
    const Epilogue epilogue = layers[i].epilogue;
    bool waits = true;
#pragma unroll 1
    for (int group = warp; group < groups; group += p.warps) {
      uint4 constants;
      Sums sums = {};
      uint32_t x = input(i) + lane / 16 * kPieceBytes + lane % 16 * 16;
      int taken = 0;
#pragma unroll 1
      for (int step = 0; step < steps; step += kBatch, x += kBatch * 4 * kPieceBytes) {
        const int count = min(steps - step, kBatch);
        bring(taken);
        ptx::wait_copy_groups<kRing - kBatch - 1>();
        if (step == 0) constants = ring.take();
        uint4 w[kBatch];
        if (count == kBatch) {
          take<true>(w, count);
          if (waits) wait_input(i);
          multiply<true>(sums, w, x, count);
        } else {
          take<false>(w, count);
          if (waits) wait_input(i);
          multiply<false>(sums, w, x, count);
        }
        waits = false;
        taken = count + (step == 0);
      }
      finish(i, group, epilogue, sums, constants);
      bring(taken);
    }
    if (waits) wait_input(i);
    if (p.cluster > 1 && i > 0) expect(i + 2);
  }
};

template <class Operand, int M_TILES>
__device__ void mlp(const Problem& p) {
  extern __shared__ __align__(128) unsigned char memory[];
  using K = Kernel<Operand, M_TILES>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = static_cast<int>(blockIdx.x) & (p.cluster - 1);
  const bool multiplies = warp < p.warps;
  const uint32_t rings = ptx::shared_address(memory);
  const uint32_t first = rings + p.warps * kRing * kStepBytes, second = first + K::kRows * p.width[0] * 2;
  const uint32_t barriers = second + K::kRows * p.width[1] * 2;
  auto* layers = reinterpret_cast<Layer*>(memory + (barriers + 16 - rings));

  Ring ring{};
  if (multiplies) {
    const int* start = p.starts + rank * p.warps + warp;
    const int begin = start[0];
    ring.source = p.stream + static_cast<int64_t>(begin) * kStepBytes + lane * 16;
    ring.place = rings + warp * kRing * kStepBytes + lane * 16;
    ring.left = start[1] - begin;
    ring.bring<kRing>();
  }
  constexpr int kWords = sizeof(Layer) / 4;
  for (int i = threadIdx.x; i < p.count * kWords; i += kThreads) {
    reinterpret_cast<uint32_t*>(layers)[i] = reinterpret_cast<const uint32_t*>(p.layers)[i];
  }
#if __CUDA_ARCH__ >= 900
  if (p.cluster > 1 && threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) ptx::barrier_init(barriers + i * 8, p.warps);
    ptx::fence_barrier_init();
  }
#endif
  __syncthreads();
  K kernel{p, first, second, barriers, layers, rank, warp, lane, 0, ring};
  kernel.rows = static_cast<int>(min(p.M - kernel.top(), static_cast<int64_t>(K::kRows)));
#if __CUDA_ARCH__ >= 900
  if (p.cluster > 1) {
    if (multiplies) kernel.expect(1), kernel.expect(2);
    ptx::cluster_arrive();
  }
#endif
  wait_for_operands();
  kernel.load_x();
  __syncthreads();
  if (multiplies) {
#pragma unroll 1
    for (int i = 0; i < p.count; ++i) kernel.make_layer(i);
  } else if (p.cluster > 1) {
#if __CUDA_ARCH__ >= 900
    ptx::cluster_wait();
#endif
  }
}

// X in 16 bits, for layers that are multiplied one by one.
template <class Operand>
__device__ void round_x(const float* x, unsigned short* y, int64_t count) {
  wait_for_operands();
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += threads) {
    y[i] = static_cast<unsigned short>(pack<Operand>(x[i], 0));
  }
}

}  // namespace

#define KERNEL(NAME, OPERAND, M_TILES, ROWS)                 \
  extern "C" __global__ void __launch_bounds__(kThreads, 1)  \
      NAME##_mlp_##ROWS(const __grid_constant__ Problem p) { \
    mlp<OPERAND, M_TILES>(p);                                \
  }
#define KERNELS(NAME, OPERAND)                                                                          \
  KERNEL(NAME, OPERAND, 1, 16)                                                                          \
  KERNEL(NAME, OPERAND, 2, 32)                                                                          \
  extern "C" __global__ void NAME##_mlp_round(const float* x, unsigned short* y, const int64_t count) { \
    round_x<OPERAND>(x, y, count);                                                                      \
  }

KERNELS(fp16, HalfOperand)
KERNELS(bf16, Bfloat16Operand)
