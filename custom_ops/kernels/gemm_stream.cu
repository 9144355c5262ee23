// DeftGemm for few rows of X: streams the weights through shared memory at the speed of device memory (sm_90
// and newer).
//
// A block owns 32 * row_warps output features. One warp brings their codes through a ring
// of stages by tensor map, 128 bytes of every row at a time; kLoaders warps bring the same features of X, in
// the order and type the tensor core wants; row_warps * k_warps warps multiply, those of one k_warp taking
// every k_warps-th stage. Weights are constants, so their ring fills before the kernel waits for the one
// ahead of it in the stream (programmatic dependent launch): the next layer's weights travel while this layer
// ends. The next kernel may start when this one has half a ring's loads left to issue: were it earlier, its
// blocks would take the places that the first of this one's leave, and some multiprocessors have two of them.
//
// W is the left operand of mma.m16n8k16 and Xᵀ the right one. The order of k within a product is free as long
// as both sides agree: lane (g, t) multiplies 16 consecutive bytes of W of rows g and g + 8, and the same k
// of row g of X. Sums are added in a fixed order, over the k_warps and over the blocks of a cluster, which
// share the K axis out where there are few output features; so results do not change between runs.
//
// Requires K and the row length of X to be multiples of 8, rows of W of multiples of 16 bytes, kept blocks of
// 8 features or more; and the ring's stages to be a multiple of k_warps, so that each slot is always emptied
// by the same warps, and kLoaders or more. kLoaders is a multiple of k_warps too: so a warp that waits to
// fill a slot has seen it, or a later one of the same warps, emptied the time before.
#include <cstdint>

#include "activate_all.cuh"
#include "ptx_cluster.cuh"
#include "ptx_hopper.cuh"
#include "stream_operands.cuh"

namespace {

constexpr int kLoaders = 4;                   // warps that bring X
constexpr int kFirstConsumer = 1 + kLoaders;  // after the warp that brings W
constexpr int kGroups = 2;                    // of 16 output features a consumer warp multiplies
constexpr int kWarpRows = 16 * kGroups;
constexpr int kRowsAtOnce = 4;  // of X, that a thread ends together
constexpr int kPartBytes = 32 * kRowsAtOnce * 4;

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
  int constants_offset;  // of scale and bias in shared memory, and a barrier, behind the ring
  int parts_offset;      // of the sums: the ring's place, or behind the constants if other blocks send some
  int turns;             // whether blocks begin with different steps
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

  using Sums = float[kGroups][M_TILES][4];

  const Problem& p;
  unsigned char* memory;
  int rank, log_cluster, first_row, steps;
  int turn;  // the step that comes first: were it the same one, all blocks would wait for the same lines of X

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
  // full when the cluster's sums have come
  __device__ uint32_t parts_full() const { return ptx::shared_address(bias() + rows()); }
  // Of the step that is `step`-th in turn.
  __device__ int first_k(int step) const {
    const int place = step + turn < steps ? step + turn : step + turn - steps;
    return (place * p.cluster + rank) * kStep;
  }
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
    if (p.cluster > 1) ptx::barrier_init(parts_full(), 1);
    ptx::fence_barrier_init();
    if (p.cluster > 1) ptx::barrier_arrive_expect(parts_full(), sources() * own_units() * kPartBytes);
    for (int i = 0; i < min(steps, p.stages); ++i) load_w(i, i);
  }

  // Loads of W that are issued when the next kernel may start: all but half a ring's.
  __device__ int loads_before_next() const { return steps - p.stages / 2; }

  __device__ void bring_w() const {
    Position at;
    for (int i = p.stages; i < steps; ++i, at.advance(1, p.stages)) {
      if (i == loads_before_next()) ptx::launch_dependents();
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
      if (i >= steps) return;
      const int k = first_k(i) + piece * 8;
      const bool inside = k < p.K;
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
      ptx::fence_async_proxy();  // or the copy engine refills the stage ahead of the last reads
      ptx::barrier_arrive(empty(at.slot));
    }
  }

  // Sums are added up and ended in units of 32 output features and kRowsAtOnce rows of X, by the blocks of
  // the cluster in turn. Each unit gets a part, (32, kRowsAtOnce), from every source: k_warp of a block.
  __device__ int sources() const { return p.cluster * p.k_warps; }
  __device__ int units() const { return p.row_warps * ((p.M + kRowsAtOnce - 1) / kRowsAtOnce); }
  __device__ int own_units() const { return (units() - rank + p.cluster - 1) >> log_cluster; }
  __device__ uint32_t part(int unit, int source) const {
    return ptx::shared_address(memory) + p.parts_offset +
           ((unit >> log_cluster) * sources() + source) * kPartBytes;
  }

  // From registers to the block that ends the unit: no block waits for another but by the count of bytes.
  __device__ void send(const Sums& sums, int row_warp, int k_warp, int lane) const {
    const int g = lane / 4, t = lane % 4, source = rank * p.k_warps + k_warp;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m) {
      const int row_of_x = m * 8 + t * 2, unit = row_of_x / kRowsAtOnce * p.row_warps + row_warp;
      if (unit >= units()) continue;
      const int owner = unit & (p.cluster - 1);
      const uint32_t place = part(unit, source) + (w_row(g) * kRowsAtOnce + row_of_x % kRowsAtOnce) * 4;
      const uint32_t to = ptx::address_at(place, owner), barrier = ptx::address_at(parts_full(), owner);
#pragma unroll
      for (int r = 0; r < kGroups; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int offset = (r * 16 + h * 8) * kRowsAtOnce * 4;
          const float* two = &sums[r][m][h * 2];
          if (p.cluster > 1) {
            ptx::store_at(to + offset, two[0], two[1], barrier);
          } else {
            ptx::store_shared(place + offset, two[0], two[1]);
          }
        }
      }
    }
  }

  // A unit's place: its first row of X, and its first output feature in the block.
  struct Place {
    int m, row;
  };

  __device__ Place place(int unit) const {
    const int rows_of_units = unit / p.row_warps;
    return {rows_of_units * kRowsAtOnce, (unit - rows_of_units * p.row_warps) * 32};
  }

  __device__ int first_unit(int warp) const { return rank + (warp << log_cluster); }

  // At the end of a short kernel every branch, every division and every wait counts: loads go together,
  // decisions are made once. `at`: the place of the warp's first unit.
  __device__ void finish(int warp, int warps, int lane, Place at) const {
#pragma unroll 1
    for (int unit = first_unit(warp); unit < units();) {
      const int m = at.m, row = at.row + lane;
      const float factor = scale()[row] * p.accumulator_scale, offset = bias()[row];
      float z[kRowsAtOnce] = {};
      if (p.cluster > 1) ptx::barrier_wait(parts_full(), 0);
      add_parts(z, part(unit, 0) + lane * kRowsAtOnce * 4);
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) z[i] = z[i] * factor + offset;
      const int n = first_row + row, wanted = n < p.N ? p.M - m : 0;
      const Rows<kRowsAtOnce> y{static_cast<size_t>(m) * p.N + n, p.N, wanted};
      if (p.residual != nullptr) add_rows(p.residual, p.epilogue.y_type, y, z);
      activate_all(p.epilogue, z);
      store_rows(p.y, p.epilogue.y_type, y, z);
      unit += warps << log_cluster;
      if (unit < units()) at = place(unit);
    }
  }

  // z += one feature's sums of neighbouring rows of X from all sources, from `first` on.
  __device__ void add_parts(float (&z)[kRowsAtOnce], uint32_t first) const {
#pragma unroll 4
    for (int source = 0; source < sources(); ++source, first += kPartBytes) {
      const float4 part = ptx::load_shared(first);
      z[0] += part.x, z[1] += part.y, z[2] += part.z, z[3] += part.w;
    }
  }

  __device__ void run() const {
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
    if (loads_before_next() < p.stages) ptx::launch_dependents();
    if (threadIdx.x == 0) start_w();
    for (int row = threadIdx.x; row < rows(); row += blockDim.x) {
      const int n = min(first_row + row, p.N - 1);
      ptx::copy_4(ptx::shared_address(scale() + row), p.scale + n);
      ptx::copy_4(ptx::shared_address(bias() + row), p.bias + n);
    }
    if (p.cluster > 1) ptx::cluster_arrive();
    Place at = place(first_unit(warp));
    asm volatile("" : "+r"(at.m), "+r"(at.row));  // known before there is anything to wait for
    make_sums(warp, lane);
    finish(warp, warps, lane, at);
  }

  // The whole block's work up to the parts of sums.
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
    if (p.cluster > 1) {
      ptx::cluster_wait();  // the other blocks' barriers are ready
    } else {
      __syncthreads();  // no warp reads the stages any more
    }
    if (consumer >= 0) send(sums, row_warp, k_warp, lane);
    __syncthreads();  // scale and bias are there, and the block's own parts
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
  const int turn = p.turns ? tile % own_steps : 0;
  K{p, memory, rank, log_cluster, tile * kWarpRows * p.row_warps, own_steps, turn}.run();
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
