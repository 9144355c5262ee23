// DeftGemm for few rows of X: streams the weights through shared memory at the speed of device memory (sm_90
// and newer).
//
// A block owns 32 * row_warps output features. One warp brings their codes through a ring of stages by tensor
// map, 128 bytes of every row at a time; kLoaders warps bring the same features of X, in the order and type
// the tensor core wants; row_warps * k_warps warps multiply, those of one k_warp taking every k_warps-th
// stage. Weights are constants, so their ring fills before the kernel waits for the one ahead of it in the
// stream (programmatic dependent launch): the next layer's weights travel while this layer ends.
//
// W is the left operand of mma.m16n8k16 and Xᵀ the right one. The order of k within a product is free as long
// as both sides agree: lane (g, t) multiplies 16 consecutive bytes of W of rows g and g + 8, and the same k
// of row g of X. Sums are added in a fixed order, over the k_warps and over the blocks of a cluster, which
// share the K axis out where there are few output features; so results do not change between runs.
//
// Requires K and the row length of X to be multiples of 8, rows of W of multiples of 16 bytes, kept blocks of
// 8 features or more; and the ring's stages to be a multiple of k_warps and of kLoaders, so that each slot is
// always the same warps'.
#include <cstdint>

#include "activate_all.cuh"
#include "ptx_hopper.cuh"
#include "stream_operands.cuh"

namespace {

constexpr int kLoaders = 4;                   // warps that bring X
constexpr int kFirstConsumer = 1 + kLoaders;  // after the warp that brings W
constexpr int kGroups = 2;                    // of 16 output features a consumer warp multiplies
constexpr int kWarpRows = 16 * kGroups;
constexpr int kRowsAtOnce = 4;  // of X, that a thread ends together

struct Problem {
  ptx::TensorMap w;  // boxes (32 * row_warps, 128 bytes), swizzled
  const void* x;
  const float* scale;
  const float* bias;
  const int* kept;
  const void* residual;
  void* y;
  int M, N, K, features, block_shift;
  int decode_shift;
  uint32_t decode_factor;
  float accumulator_scale;
  Epilogue epilogue;
  int row_warps;
  int k_warps;  // a power of two
  int stages;
  int cluster;           // blocks that share K: a power of two
  int constants_offset;  // of scale and bias in shared memory, behind the ring and the sums
};

// Where in the ring of stages a warp is.
struct Position {
  int slot = 0;
  uint32_t phase = 0;
  __device__ void advance(int count, int stages) {  // count <= stages
    slot += count;
    if (slot >= stages) slot -= stages, phase ^= 1;
  }
};

template <class Operand, class XType, int CODE_BYTES, int M_TILES>
struct Kernel {
  static constexpr int kPiece = 16 / CODE_BYTES;  // k of 16 bytes of W
  static constexpr int kStep = 8 * kPiece;        // k of a stage
  static constexpr int kM = 8 * M_TILES;
  static constexpr int kXPieces = kStep / 8;  // 16-byte pieces of a row of X
  static constexpr int kXBytes = kM * kStep * 2;

  const Problem& p;
  unsigned char* memory;
  int rank, first_row, steps;

  __device__ int rows() const { return kWarpRows * p.row_warps; }
  __device__ unsigned char* w_stage(int s) const { return memory + s * rows() * 128; }
  __device__ uint4* x_stage(int s) const {
    return reinterpret_cast<uint4*>(memory + p.stages * rows() * 128 + s * kXBytes);
  }
  // barriers of a stage: full when W and X have come, empty when its consumers have left it
  __device__ uint32_t full(int s) const {
    return ptx::shared_address(memory) + p.stages * (rows() * 128 + kXBytes) + s * 8;
  }
  __device__ uint32_t empty(int s) const { return full(s) + p.stages * 8; }
  __device__ float* scale() const { return reinterpret_cast<float*>(memory + p.constants_offset); }
  __device__ float* bias() const { return scale() + rows(); }
  __device__ int first_k(int step) const { return (step * p.cluster + rank) * kStep; }
  // pieces that are read together lie in different banks
  static __device__ int x_slot(int row, int piece) {
    return piece ^ (CODE_BYTES == 1 ? row & 1 : (row & 1) << 2);
  }
  // of the eight rows of W that a quarter of a warp's lanes hold: neighbours' pieces lie in different banks
  static __device__ int w_row(int g) { return g / 2 + (g & 1) * 4; }

  __device__ void load_w(int step, int slot) const {
    ptx::barrier_arrive_expect(full(slot), rows() * 128);
    ptx::load_box(ptx::shared_address(w_stage(slot)), p.w, first_row, first_k(step), full(slot));
  }

  // By one thread: barriers, and the weights that fit the ring.
  __device__ void start_w() const {
    ptx::prefetch_map(p.w);
    for (int s = 0; s < p.stages; ++s) {
      ptx::barrier_init(full(s), 1 + 32);  // the thread that brings W and those that bring X
      ptx::barrier_init(empty(s), 32 * p.row_warps);
    }
    ptx::fence_barrier_init();
    for (int i = 0; i < min(steps, p.stages); ++i) load_w(i, i);
  }

  __device__ void bring_w() const {
    Position at;
    for (int i = p.stages; i < steps; ++i, at.advance(1, p.stages)) {
      ptx::barrier_wait(empty(at.slot), at.phase);
      load_w(i, at.slot);
    }
  }

  // The column of X that the features from k on lie in.
  __device__ int x_column(int k) const {
    if (p.kept == nullptr) return k;
    return (p.kept[k >> p.block_shift] << p.block_shift) + (k & ((1 << p.block_shift) - 1));
  }

  // By one of kLoaders warps: every kLoaders-th stage, the next one's loads under way while it stores this
  // one's.
  __device__ void bring_x(int loader, int lane) const {
    constexpr int kRowsALoad = 32 / kXPieces, kLoads = kM / kRowsALoad;
    const int piece = lane % kXPieces, first = lane / kXPieces;
    XPiece<XType> pieces[kLoads];
    const auto load = [&](int i) {
      const int k = first_k(i) + piece * 8;
      const bool inside = i < steps && k < p.K;
      const XType* column = static_cast<const XType*>(p.x) + (inside ? x_column(k) : 0);
#pragma unroll
      for (int q = 0; q < kLoads; ++q) {
        const int row = first + q * kRowsALoad;
        pieces[q].load(column + static_cast<size_t>(row) * p.features, inside && row < p.M);
      }
    };
    Position at;
    at.advance(loader, p.stages);
    load(loader);
    __syncthreads();  // the barriers are ready
#pragma unroll 1
    for (int i = loader; i < steps; i += kLoaders, at.advance(kLoaders, p.stages)) {
      ptx::barrier_wait(empty(at.slot), at.phase ^ 1);
      uint4* stage = x_stage(at.slot);
#pragma unroll
      for (int q = 0; q < kLoads; ++q) {
        const int row = first + q * kRowsALoad;
        stage[row * kXPieces + x_slot(row, piece)] = pieces[q].template ordered<CODE_BYTES == 1>();
      }
      ptx::barrier_arrive(full(at.slot));
      load(i + kLoaders);
    }
  }

  using Sums = float[kGroups][M_TILES][4];

  __device__ void multiply_stage(Sums& sums, const Decoder<Operand, CODE_BYTES>& decoder, int slot,
                                 int row_warp, int g, int t) const {
    const uint4* w = reinterpret_cast<const uint4*>(w_stage(slot)) + (row_warp * kWarpRows + w_row(g)) * 8;
    const uint4* x = x_stage(slot);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 pieces[kGroups][2];
#pragma unroll
      for (int r = 0; r < kGroups; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) pieces[r][h] = w[(r * 16 + h * 8) * 8 + ((half * 4 + t) ^ w_row(g))];
      }
#pragma unroll
      for (int q = 0; q < kPiece / 8; ++q) {
        uint4 right[M_TILES];
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) {
          const int row = m * 8 + g, piece = (half * 4 + t) * (kPiece / 8) + q;
          right[m] = x[row * kXPieces + x_slot(row, piece)];
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int r = 0; r < kGroups; ++r) {
            uint32_t left[4];
            decoder.left_operand(left, pieces[r], q * 2 + j);
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
              const uint4& four = right[m];
              const uint32_t b[2] = {j == 0 ? four.x : four.z, j == 0 ? four.y : four.w};
              Operand::multiply(sums[r][m], left, b);
            }
          }
        }
      }
    }
  }

  __device__ void multiply(Sums& sums, int row_warp, int k_warp, int lane) const {
    Position at;
    at.advance(k_warp, p.stages);
    const Decoder<Operand, CODE_BYTES> decoder(p.decode_shift, p.decode_factor);
#pragma unroll 1
    for (int i = k_warp; i < steps; i += p.k_warps, at.advance(p.k_warps, p.stages)) {
      ptx::barrier_wait(full(at.slot), at.phase);
      multiply_stage(sums, decoder, at.slot, row_warp, lane / 4, lane % 4);
      ptx::barrier_arrive(empty(at.slot));
    }
  }

  // Sums of a k_warp, (kM, rows): they take the place of the stages. The 4 keep lanes that store in other
  // banks.
  __device__ float* partial(int k_warp, int m) const {
    return reinterpret_cast<float*>(memory) + (k_warp * kM + m) * (rows() + 4);
  }

  __device__ void store_partial(const Sums& sums, int row_warp, int k_warp, int lane) const {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < kGroups; ++r) {
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = row_warp * kWarpRows + r * 16 + i / 2 * 8 + w_row(g);
          partial(k_warp, m * 8 + t * 2 + i % 2)[row] = sums[r][m][i];
        }
      }
    }
  }

  // Adds up and ends 32 output features of kRowsAtOnce rows of X a warp at a time; the cluster's blocks take
  // turns. At the end of a short kernel every branch and every wait counts: loads go together, decisions are
  // made once.
  __device__ void finish(int warp, int warps, int lane) const {
    int row_warp = rank * warps + warp, m = 0;
#pragma unroll 1
    for (;; row_warp += p.cluster * warps) {
      while (row_warp >= p.row_warps) row_warp -= p.row_warps, m += kRowsAtOnce;
      if (m >= p.M) return;
      const int row = row_warp * 32 + lane, n = first_row + row;
      const float factor = scale()[row] * p.accumulator_scale, offset = bias()[row];
      float z[kRowsAtOnce] = {};
      if (p.cluster == 1) {
        add_own(z, partial(0, m) + row);
      } else {
        add_cluster(z, partial(0, m) + row);
      }
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) z[i] = z[i] * factor + offset;
      const Rows<kRowsAtOnce> y{static_cast<size_t>(m) * p.N + n, p.N, n < p.N ? p.M - m : 0};
      if (p.residual != nullptr) add_rows(p.residual, p.epilogue.y_type, y, z);
      activate_all(p.epilogue, z);
      store_rows(p.y, p.epilogue.y_type, y, z);
    }
  }

  // z += the k_warps' sums of neighbouring rows of X, from `first` on.
  __device__ void add_own(float (&z)[kRowsAtOnce], const float* first) const {
    const int row_of_x = rows() + 4;
#pragma unroll 1
    for (int q = 0; q < p.k_warps; ++q, first += kM * row_of_x) {
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) z[i] += first[i * row_of_x];
    }
  }

  // The same over all blocks of the cluster.
  __device__ void add_cluster(float (&z)[kRowsAtOnce], const float* first) const {
    const int row_of_x = rows() + 4;
#pragma unroll 1
    for (int r = 0; r < p.cluster; ++r) {
      uint32_t sum = ptx::address_at(ptx::shared_address(first), r);
#pragma unroll 1
      for (int q = 0; q < p.k_warps; ++q, sum += 4 * kM * row_of_x) {
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i) z[i] += ptx::load_float_at(sum + 4 * i * row_of_x);
      }
    }
  }

  __device__ void run() const {
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
    ptx::launch_dependents();
    if (threadIdx.x == 0) start_w();
    for (int row = threadIdx.x; row < rows(); row += blockDim.x) {
      const int n = min(first_row + row, p.N - 1);
      ptx::copy_4(ptx::shared_address(scale() + row), p.scale + n);
      ptx::copy_4(ptx::shared_address(bias() + row), p.bias + n);
    }
    make_sums(warp, lane);
    finish(warp, warps, lane);
    if (p.cluster > 1) ptx::cluster_sync();  // no block leaves while another still reads its sums
  }

  // The whole block's work up to the partial sums in shared memory, its own and those of the cluster's
  // blocks.
  __device__ void make_sums(int warp, int lane) const {
    const int consumer = warp - kFirstConsumer;
    const int k_warp = consumer & (p.k_warps - 1), row_warp = consumer >> (31 - __clz(p.k_warps));
    ptx::wait_dependencies();
    Sums sums = {};
    if (consumer >= 0) {
      __syncthreads();
      multiply(sums, row_warp, k_warp, lane);
    } else if (warp > 0) {
      bring_x(warp - 1, lane);
    } else {
      __syncthreads();
      if (lane == 0) bring_w();
    }
    ptx::wait_copies();
    __syncthreads();  // no warp reads the stages any more
    if (consumer >= 0) store_partial(sums, row_warp, k_warp, lane);
    if (p.cluster > 1) {
      ptx::cluster_sync_memory();
    } else {
      __syncthreads();
    }
  }
};

template <class Operand, class XType, int CODE_BYTES, int M_TILES>
__device__ void gemm(const Problem& p) {
  using K = Kernel<Operand, XType, CODE_BYTES, M_TILES>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const int rank = p.cluster > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
  const int log_cluster = 31 - __clz(p.cluster);
  const int tile = static_cast<int>(blockIdx.x) >> log_cluster;
  const int steps = (p.K + K::kStep - 1) / K::kStep;
  const int own_steps = (steps - rank + p.cluster - 1) >> log_cluster;
  K{p, memory, rank, tile * kWarpRows * p.row_warps, own_steps}.run();
}

}  // namespace

#define KERNEL(NAME, OPERAND, X, CODE_BYTES, M_TILES)                                             \
  extern "C" __global__ void __launch_bounds__(32 * (kFirstConsumer + (M_TILES > 2 ? 8 : 14)), 1) \
      NAME##_##M_TILES(const __grid_constant__ Problem p) {                                       \
    gemm<OPERAND, X, CODE_BYTES, M_TILES>(p);                                                     \
  }
#define KERNELS(NAME, OPERAND, X, CODE_BYTES) \
  KERNEL(NAME, OPERAND, X, CODE_BYTES, 1)     \
  KERNEL(NAME, OPERAND, X, CODE_BYTES, 2)     \
  KERNEL(NAME, OPERAND, X, CODE_BYTES, 4)

KERNELS(fp16_fp16, HalfOperand, __half, 2)
KERNELS(bf16_bf16, Bfloat16Operand, __nv_bfloat16, 2)
KERNELS(fp16_u8, HalfOperand, __half, 1)
KERNELS(bf16_u8, Bfloat16Operand, __nv_bfloat16, 1)
