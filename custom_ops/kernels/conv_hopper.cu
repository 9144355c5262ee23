// DeftConv on Hopper's tensor cores: an implicit GEMM whose rows are output pixels, without an im2col matrix.
//
//   Y (M, N) = activation(sum over blocks b of X_b (M, block) · W_b (N, block)ᵀ * scale + bias + residual)
//
// M = batch · rows · columns of Y. A block is `block` neighbouring channels at one tap of the filter; X_b is
// what that tap reads of X (batch, rows, columns, channels) for every output pixel. The copy engine gathers
// it (im2col mode of a tensor map: stride, padding and dilation included), so a list of blocks costs what a
// dense K loop costs, and elimination is a shorter list. With blocks of 8 channels every row of a copy is one
// 16-byte vector.
//
// Two warpgroups multiply, one warp of a third copies ahead, over the ends of tiles too: the grid is
// persistent. A K step is 64 input features: 64 / block copies of X, one of W.
#include "activate_all.cuh"
#include "ptx_hopper.cuh"
#include "ptx_im2col.cuh"
#include "wgmma.cuh"

namespace {

constexpr int kTileRows = 128;
constexpr int kStep = 64;                     // input features a K step
constexpr int kRowBytes = 128;                // of a step, in 16 bits
constexpr int kBufferBytes = 64 * kRowBytes;  // of a warpgroup's outputs on their way out
constexpr int kConsumers = 256;               // threads; the producer warp comes behind them

// Arrives at a hardware barrier among `threads` threads without waiting.
__device__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The field order is that of runtime/conv_hopper.cpp.
struct ConvParameters {
  const int2* blocks;    // (groups, blocks): channel, tap offsets (rows << 16 | columns)
  const float* scale;    // (N,)
  const float* bias;     // (N,)
  const void* residual;  // (M, N) or null
  int M, N, outputs;     // outputs: N / groups
  int steps;             // K steps
  int block_count;       // blocks of a group
  int block_shift;       // log2 of the channels a block has: 3 to 6
  int rows, columns;     // of Y's image
  int row_stride, column_stride, row_start, column_start;  // of the filter's window: start is -padding
  int tiles, column_tiles, group_tiles;                    // column_tiles = groups * group_tiles
  Epilogue epilogue;
};

constexpr int kStoreBarrier = 1;  // hardware barriers, one for each warpgroup
constexpr int kTurnBarrier = 3;

struct Tile {
  int row, column, group, end;  // first row and output feature; end of the group's output features
};

template <int COLUMNS>
__device__ Tile tile_at(const ConvParameters& p, int index) {
  const int row_tile = index / p.column_tiles, column_tile = index % p.column_tiles;
  const int group = column_tile / p.group_tiles, within = column_tile % p.group_tiles;
  return {row_tile * kTileRows, group * p.outputs + within * COLUMNS, group, (group + 1) * p.outputs};
}

template <class Element>
__device__ uint32_t pack(float a, float b);
template <>
__device__ uint32_t pack<__half>(float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ uint32_t pack<__nv_bfloat16>(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <class Element>
__device__ float2 unpack(uint32_t word);
template <>
__device__ float2 unpack<__half>(uint32_t word) {
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}
template <>
__device__ float2 unpack<__nv_bfloat16>(uint32_t word) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&word));
}

// Scale, bias, residual and activation of 8 pairs of neighbours of a row, rounded to words. lines: scale and
// bias of the two. PLAIN: the curve is a clamp.
template <class Element, bool PLAIN>
__device__ void finish_words(const ConvParameters& p, const float (&d)[16], const float4 (&lines)[4],
                             const uint32_t (&residual)[8], uint32_t (&words)[8]) {
  float z[16];
#pragma unroll
  for (int i = 0; i < 8; ++i) {  // word i: features 8 (i / 2) + 2 quad, + 1 of row lane / 4 + 8 (i % 2)
    z[2 * i] = d[2 * i] * lines[i / 2].x + lines[i / 2].y;
    z[2 * i + 1] = d[2 * i + 1] * lines[i / 2].z + lines[i / 2].w;
  }
  if (p.residual != nullptr) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 added = unpack<Element>(residual[i]);
      z[2 * i] += added.x, z[2 * i + 1] += added.y;
    }
  }
  if constexpr (PLAIN) {
#pragma unroll
    for (int i = 0; i < 16; ++i) z[i] = clamp_line(p.epilogue, z[i]);
  } else {
    activate_all(p.epilogue, z);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) words[i] = pack<Element>(z[2 * i], z[2 * i + 1]);
}

// Finishes 64 rows from `row` on, which a warpgroup's sums hold as wgmma.cuh tells, and stores them by the
// copy engine from two buffers of 64 features in turn.
template <class Element, int COLUMNS, bool PLAIN>
__device__ void finish(const ConvParameters& p, const ptx::TensorMap& y, const float (&d)[COLUMNS / 2],
                       int row, const Tile& tile, uint32_t lines, uint32_t buffers, int& turn) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32,
            barrier = kStoreBarrier + threadIdx.x / 128;
  const int m = row + 16 * warp + lane / 4;
  // stmatrix: this lane gives the address of row `lane % 8` of matrix `lane / 8`
  const int stored_row = 16 * warp + lane % 16;
#pragma unroll
  for (int chunk = 0; chunk < COLUMNS; chunk += 64) {
    const int column = tile.column + chunk;
    const uint32_t buffer = buffers + turn * kBufferBytes;
    if (column >= tile.end) break;
    if (threadIdx.x % 128 == 0) ptx::wait_stores_read<1>();  // the other buffer may still be read
    ptx::named_barrier_sync(barrier, 128);
#pragma unroll
    for (int j = 0; j < 64; j += 32) {
      float4 ends[4];
      uint32_t residual[8] = {}, words[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = column + j + 8 * i + 2 * (lane % 4);
        ends[i] = ptx::load_shared(lines + 8 * (n - tile.column));
        if (p.residual == nullptr || n >= tile.end) continue;
        const auto* from = static_cast<const Element*>(p.residual) + static_cast<size_t>(m) * p.N + n;
        if (m < p.M) residual[2 * i] = __ldg(reinterpret_cast<const uint32_t*>(from));
        if (m + 8 < p.M)
          residual[2 * i + 1] = __ldg(reinterpret_cast<const uint32_t*>(from + 8 * size_t(p.N)));
      }
      float sums[16];
#pragma unroll
      for (int i = 0; i < 16; ++i) sums[i] = d[(chunk + j) / 2 + i];
      finish_words<Element, PLAIN>(p, sums, ends, residual, words);
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const int unit = j / 8 + i / 2 + lane / 16;  // of 16 bytes
        const uint32_t address = buffer + stored_row * kRowBytes + ((unit ^ (stored_row & 7)) << 4);
        ptx::store_matrices(address, words[i], words[i + 1], words[i + 2], words[i + 3]);
      }
    }
    ptx::fence_async_proxy();
    ptx::named_barrier_sync(barrier, 128);
    if (threadIdx.x % 128 == 0) {
      ptx::store_box(y, buffer, row, column);
      ptx::commit_stores();
    }
    turn ^= 1;
  }
}

// TOGETHER: both warpgroups multiply one tile of 128 by COLUMNS, half the rows each. Otherwise each has tiles
// of 128 by COLUMNS of its own, every other one, and finishes one while its neighbour multiplies.
template <class Element, int COLUMNS, bool TOGETHER, int STAGES>
struct ConvTile {
  static constexpr int kXBytes = kTileRows * kRowBytes;
  static constexpr int kStageBytes = kXBytes + COLUMNS * kRowBytes;
  // behind the stages in shared memory
  static constexpr int kBuffers = STAGES * kStageBytes;  // of outputs
  static constexpr int kLines = kBuffers + 4 * kBufferBytes;
  static constexpr int kBarriers = kLines + 8 * COLUMNS * (TOGETHER ? 1 : 2);
  static constexpr int kParts = TOGETHER ? 1 : 2;  // of 64 rows that a warpgroup has of a tile

  // One warp: keeps STAGES steps under way. Lane i copies block i of a step.
  static __device__ void produce(const ConvParameters& p, const ptx::TensorMap& x, const ptx::TensorMap& w,
                                 uint32_t stages, uint32_t full, uint32_t empty) {
    const int lane = threadIdx.x % 32;
    const int blocks_a_step = kStep >> p.block_shift;
    const int block_bytes = kXBytes >> (6 - p.block_shift);
    const int images = p.rows * p.columns;
    int stage = 0, phase = 0;
    for (int index = blockIdx.x; index < p.tiles; index += gridDim.x) {
      const Tile tile = tile_at<COLUMNS>(p, index);
      const int batch = tile.row / images, pixel = tile.row % images;
      const int row = pixel / p.columns * p.row_stride + p.row_start;
      const int column = pixel % p.columns * p.column_stride + p.column_start;
      const int2* blocks = p.blocks + tile.group * p.block_count;
      for (int step = 0; step < p.steps; ++step) {
        // behind the last block the weight is zero: any block will do
        const int2 block = blocks[min(step * blocks_a_step + lane, p.block_count - 1)];
        ptx::barrier_wait(empty + 8 * stage, phase ^ 1);
        const uint32_t memory = stages + stage * kStageBytes, barrier = full + 8 * stage;
        if (lane == 0) {
          ptx::barrier_arrive_expect(barrier, kStageBytes);
          ptx::load_box(memory + kXBytes, w, tile.column, step * kStep, barrier);
        }
        __syncwarp();
        if (lane < blocks_a_step) {
          ptx::load_im2col(memory + lane * block_bytes, x, block.x, column, row, batch,
                           static_cast<uint16_t>(block.y), static_cast<uint16_t>(block.y >> 16), barrier);
        }
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
    }
  }

  // Scale and bias of the tile's features that this thread brings, one for each 128 columns.
  struct Lines {
    float2 line[(COLUMNS + 127) / 128];
  };
  static __device__ Lines load_lines(const ConvParameters& p, const Tile& tile) {
    Lines lines;
#pragma unroll
    for (int i = 0; i < (COLUMNS + 127) / 128; ++i) {
      const int n = tile.column + threadIdx.x % 128 + 128 * i;
      lines.line[i] = n < tile.end ? float2{p.scale[n], p.bias[n]} : float2{0, 0};
    }
    return lines;
  }

  // Puts them where finish() finds all at once. Where both warpgroups share the place they write the same.
  static __device__ void store_lines(const Lines& lines, uint32_t place) {
    if constexpr (TOGETHER) ptx::named_barrier_sync(kTurnBarrier, kConsumers);  // the last tile's were read
#pragma unroll
    for (int i = 0; i < (COLUMNS + 127) / 128; ++i) {
      const int column = threadIdx.x % 128 + 128 * i;
      if (column < COLUMNS) ptx::store_shared(place + 8 * column, lines.line[i].x, lines.line[i].y);
    }
  }

  // A warpgroup's part of a step: X and W lie at `memory`.
  static __device__ void multiply(const ConvParameters& p, uint32_t memory, int first_row, bool add,
                                  float (&d)[kParts][COLUMNS / 2]) {
    const int width = 2 << p.block_shift;  // bytes a row of a block's X has
    const int block_bytes = kXBytes >> (6 - p.block_shift);
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
      const uint32_t block = width >= 32 ? (32 * k) >> (p.block_shift + 1) : 2 * k;
      const uint32_t offset = block * block_bytes + (width >= 32 ? (32 * k) & (width - 1) : 0);
      const uint64_t b = wgmma::descriptor(memory + kXBytes + 32 * k, kRowBytes, 0);
#pragma unroll
      for (int r = 0; r < kParts; ++r) {
        const uint64_t a =
            wgmma::descriptor(memory + offset + (first_row + 64 * r) * width, width, block_bytes);
        wgmma::Product<Element>::add(d[r], a, b, add || k > 0);
      }
    }
    wgmma::commit();
  }

  // A warpgroup: multiplies its tiles step by step and finishes them.
  static __device__ void consume(const ConvParameters& p, const ptx::TensorMap& y, uint32_t stages,
                                 uint32_t full, uint32_t empty) {
    const int warpgroup = threadIdx.x / 128;
    const bool leader = threadIdx.x % 128 == 0;
    const int first_row = TOGETHER ? 64 * warpgroup : 0;
    const uint32_t buffers = stages + kBuffers + warpgroup * 2 * kBufferBytes;
    const uint32_t lines = stages + kLines + (TOGETHER ? 0 : warpgroup * COLUMNS * 8);
    const bool plain = p.epilogue.curve == 0 && !p.epilogue.gated;
    if (!TOGETHER && warpgroup == 1) named_barrier_arrive(kTurnBarrier, kConsumers);  // the first may begin
    int turn = 0;
    int count = TOGETHER ? 0 : warpgroup;  // of this block's tiles that came before
    for (int index = blockIdx.x + count * gridDim.x; index < p.tiles;
         index += (TOGETHER ? 1 : 2) * gridDim.x) {
      const Tile tile = tile_at<COLUMNS>(p, index);
      int stage = static_cast<unsigned>(count * p.steps) % STAGES;
      int phase = static_cast<unsigned>(count * p.steps) / STAGES & 1;
      const Lines held = load_lines(p, tile);
      float d[kParts][COLUMNS / 2];
      if constexpr (!TOGETHER) ptx::named_barrier_sync(kTurnBarrier + warpgroup, kConsumers);
      for (int step = 0; step < p.steps; ++step) {
        ptx::barrier_wait(full + 8 * stage, phase);
        // in turn: who waited for a stage two rounds ahead would take its phase for the one before
        if (!TOGETHER && step == p.steps - 1)
          named_barrier_arrive(kTurnBarrier + (warpgroup ^ 1), kConsumers);
        wgmma::fence();
        multiply(p, stages + stage * kStageBytes, first_row, step > 0, d);
        // the step before is done: its stage may be filled again
        wgmma::wait<1>();
        if (step > 0 && leader) ptx::barrier_arrive(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
      wgmma::wait<0>();
      if (leader) ptx::barrier_arrive(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));
      store_lines(held, lines);
#pragma unroll
      for (int r = 0; r < kParts; ++r) {
        wgmma::settle(d[r]);
        const int row = tile.row + first_row + 64 * r;
        if (plain) {
          finish<Element, COLUMNS, true>(p, y, d[r], row, tile, lines, buffers, turn);
        } else {
          finish<Element, COLUMNS, false>(p, y, d[r], row, tile, lines, buffers, turn);
        }
      }
      count += TOGETHER ? 1 : 2;
    }
  }

  static __device__ void run(const ConvParameters& p, const ptx::TensorMap& x, const ptx::TensorMap& w,
                             const ptx::TensorMap& y) {
    // there is no static shared memory, so this begins at a multiple of 1024, after which swizzles repeat
    extern __shared__ unsigned char memory[];
    const uint32_t stages = ptx::shared_address(memory);
    const uint32_t full = stages + kBarriers, empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
      if (stages % 1024 != 0) __trap();
      for (int i = 0; i < STAGES; ++i) {
        ptx::barrier_init(full + 8 * i, 1);
        ptx::barrier_init(empty + 8 * i, TOGETHER ? 2 : 1);
      }
      ptx::fence_barrier_init();
    }
    __syncthreads();
    // registers move from the producer's warpgroup to the threads that hold sums
    if (threadIdx.x >= kConsumers) {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
      if (threadIdx.x < kConsumers + 32) produce(p, x, w, stages, full, empty);
    } else {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
      consume(p, y, stages, full, empty);
    }
  }
};

}  // namespace

#define CONV(NAME, ELEMENT, COLUMNS, TOGETHER, STAGES)                                               \
  extern "C" __global__ void __launch_bounds__(kConsumers + 128, 1) NAME##_##COLUMNS(                \
      const __grid_constant__ ptx::TensorMap x, const __grid_constant__ ptx::TensorMap w,            \
      const __grid_constant__ ptx::TensorMap y, const __grid_constant__ ConvParameters parameters) { \
    ConvTile<ELEMENT, COLUMNS, TOGETHER, STAGES>::run(parameters, x, w, y);                          \
  }
#define CONV_TILES(NAME, ELEMENT)   \
  CONV(NAME, ELEMENT, 256, true, 4) \
  CONV(NAME, ELEMENT, 128, true, 6) \
  CONV(NAME, ELEMENT, 64, false, 8)

CONV_TILES(fp16, __half)
CONV_TILES(bf16, __nv_bfloat16)
