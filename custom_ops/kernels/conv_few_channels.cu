// DeftConv of images of few channels (three colours, one of grey), whose windows are too short for copies of
// 16 bytes: tensor cores by mma.sync (compute capability 8.0), float16 or bfloat16, sums in float32.
//
// A block makes tiles of 256 output pixels of one image by 64 output features. What the filter sees of X lies
// in shared memory as a patch of rows, two neighbouring values a word, and the next tile's patch comes while
// a tile is multiplied. The features of W are counted in words (`pairs`), zero where a word holds a value
// that the filter leaves out. A warp multiplies 32 pixels, whose words it reads as mma's left operand; where
// pixels begin at odd values, from two words each. W's features are ordered so that a thread's sums are 8
// neighbours of a row, stored at once. POOLED: Y has the maxima of squares of 2 by 2 pixels, a thread's four.
#include "activate_all.cuh"
#include "early_start.cuh"
#include "mma_operands.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWarpPixels = 32;
constexpr int kTiles = 8;      // products of 8 features side by side
constexpr int kFeatures = 64;  // of W's rows, in a block
constexpr int kStepPairs = 8;  // of a product: 16 features

// The field order is that of runtime/conv_few_channels.cpp.
struct Parameters {
  const uint16_t* x;    // (batch, in_rows, in_columns, channels)
  const uint4* weight;  // (parts, steps, kTiles / 2, 32): right operands, as lanes hold them
  const int2* pairs;    // (8 * steps,): place in the patch, row << 16 | word; which halves of the word count
  const float2* lines;  // (64 * parts,): scale and bias
  const uint16_t* residual;  // (pixels, N) or null
  uint16_t* y;               // (pixels, N), or of squares
  int steps, parts, N;
  int channels, in_rows, in_columns, out_rows, out_columns;
  int row_stride, column_stride, row_start, column_start;
  int column_shift;  // log2 of the output columns of a tile: at least 1
  int patch_rows;
  int pitch;    // words of a row of the patch
  int shift;    // values of a row of the patch before the first that the filter sees: 0 or 1
  int odd;      // whether pixels begin at odd values
  int aligned;  // whether rows of X begin at words
  int row_tiles, column_tiles, tiles;  // of an image; of all
  Epilogue epilogue;
};

struct Tile {
  int image, row, column;  // first output pixel
};

__device__ Tile tile_at(const Parameters& p, int index) {
  const int image = index / (p.row_tiles * p.column_tiles), within = index % (p.row_tiles * p.column_tiles);
  return {image, within / p.column_tiles * (kThreads >> p.column_shift),
          (within % p.column_tiles) << p.column_shift};
}

// Starts to copy BYTES; zeros where there is nothing `inside`.
template <int BYTES>
__device__ void copy(void* shared, const void* global, bool inside = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "n"(BYTES), "r"(inside ? BYTES : 0)
               : "memory");
}
__device__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Starts to fill the patch of a tile; zeros outside the image. A warp takes a row at a time.
__device__ void load_patch(const Parameters& p, int index, uint32_t* patch) {
  const Tile tile = tile_at(p, index);
  const int line = p.in_columns * p.channels;
  const int first = (tile.column * p.column_stride + p.column_start) * p.channels - p.shift;
  for (int r = threadIdx.x / 32; r < p.patch_rows; r += kThreads / 32) {
    const int row = tile.row * p.row_stride + p.row_start + r;
    const bool inside = row >= 0 && row < p.in_rows;
    const uint16_t* from = p.x + (static_cast<long long>(tile.image) * p.in_rows + (inside ? row : 0)) * line;
    for (int i = threadIdx.x % 32; i < p.pitch; i += 32) {
      const int at = first + 2 * i;
      uint32_t* to = patch + r * p.pitch + i;
      if (p.aligned) {  // and so is the row's end: a word is all inside or all outside
        const bool here = inside && at >= 0 && at < line;
        copy<4>(to, from + (here ? at : 0), here);
      } else {
        const uint32_t low = inside && at >= 0 && at < line ? from[at] : 0;
        const uint32_t high = inside && at + 1 >= 0 && at + 1 < line ? from[at + 1] : 0;
        *to = high << 16 | low;
      }
    }
  }
}

// A pixel in its tile.
struct Place {
  int row, column;
};

// A thread's pixel i: of the rows g, g + 8, g + 16 and g + 24 of its warp's left operand, of which it holds
// the sums. `first`: the warp's first, and g.
template <bool POOLED>
__device__ Place place_of(const Parameters& p, int first, int i) {
  const int mask = (1 << p.column_shift) - 1;
  if constexpr (POOLED) {
    const int square = first / kWarpPixels * 8 + first % 8;
    return {2 * (square >> (p.column_shift - 1)) + i / 2, 2 * (square & (mask >> 1)) + i % 2};
  } else {
    const int pixel = first + 8 * i;
    return {pixel >> p.column_shift, pixel & mask};
  }
}

// Where a thread's four pixels begin in a patch: the word, and the bits of it that come before.
struct Pixels {
  int word[4], bits[4];
};

// Sums of 32 pixels, of which this lane has rows g, g + 8, g + 16, g + 24. ODD: they may begin at odd values.
template <class Operand, bool ODD>
__device__ void multiply(int steps, const uint32_t* patch, const Pixels& pixels, const uint4* weight,
                         const int2* pairs, float (&sums)[2][kTiles][4]) {
  const int lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) sums[i][t][0] = sums[i][t][1] = sums[i][t][2] = sums[i][t][3] = 0;
  }
#pragma unroll 2
  for (int step = 0; step < steps; ++step) {
    uint32_t a[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int2 pair = pairs[step * kStepPairs + 4 * half + q];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t* from = patch + pixels.word[i] + pair.x;
        const uint32_t word = ODD ? __funnelshift_r(from[0], from[1], pixels.bits[i]) : from[0];
        a[i / 2][i % 2 + 2 * half] = word & pair.y;
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
      const uint4 w = weight[(step * kTiles + t) / 2 * 32 + lane];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Operand::multiply(sums[i][t], a[i], {w.x, w.y});
        Operand::multiply(sums[i][t + 1], a[i], {w.z, w.w});
      }
    }
  }
}

template <class Operand>
__device__ float2 unpack(uint32_t word);
template <>
__device__ float2 unpack<HalfOperand>(uint32_t word) {
  return __half22float2(reinterpret_cast<const __half2&>(word));
}
template <>
__device__ float2 unpack<Bfloat16Operand>(uint32_t word) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(word));
}

template <class Operand>
__device__ uint32_t pack(float a, float b);
template <>
__device__ uint32_t pack<HalfOperand>(float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}
template <>
__device__ uint32_t pack<Bfloat16Operand>(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Makes of the sums of 8 neighbouring features of a pixel, of which `at` is the first in the residual, if
// there may be one, what Y has. lines: scale and bias of each two. PLAIN: the curve is a clamp.
template <class Operand, bool PLAIN, bool RESIDUAL>
__device__ void finish(const Parameters& p, float (&z)[8], const float4 (&lines)[4], size_t at) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    z[2 * i] = fmaf(z[2 * i], lines[i].x, lines[i].y);
    z[2 * i + 1] = fmaf(z[2 * i + 1], lines[i].z, lines[i].w);
  }
  if (RESIDUAL && p.residual != nullptr) {
    const uint4 added = *reinterpret_cast<const uint4*>(p.residual + at);
    const uint32_t words[] = {added.x, added.y, added.z, added.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = unpack<Operand>(words[i]);
      z[2 * i] += two.x, z[2 * i + 1] += two.y;
    }
  }
  if constexpr (PLAIN) {
#pragma unroll
    for (int i = 0; i < 8; ++i) z[i] = clamp_line(p.epilogue, z[i]);
  } else {
    activate_all(p.epilogue, z);
  }
}

template <class Operand>
__device__ void store(const Parameters& p, const float (&z)[8], size_t at) {
  *reinterpret_cast<uint4*>(p.y + at) = {pack<Operand>(z[0], z[1]), pack<Operand>(z[2], z[3]),
                                         pack<Operand>(z[4], z[5]), pack<Operand>(z[6], z[7])};
}

// A pixel's sums of 8 neighbouring features, from product u on.
__device__ void gather(const float (&sums)[2][kTiles][4], int i, int u, float (&z)[8]) {
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    z[2 * t] = sums[i / 2][u + t][i % 2 * 2];
    z[2 * t + 1] = sums[i / 2][u + t][i % 2 * 2 + 1];
  }
}

// Ends a thread's pixels of 8 features, which are those of Y from `feature` on.
template <class Operand, bool PLAIN>
__device__ void finish_pixels(const Parameters& p, const float (&sums)[2][kTiles][4], int u,
                              const float4 (&lines)[4], const Tile& tile, int first, int feature) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Place place = place_of<false>(p, first, i);
    const int row = tile.row + place.row, column = tile.column + place.column;
    if (row >= p.out_rows || column >= p.out_columns) continue;
    const size_t at = (static_cast<size_t>(tile.image) * p.out_rows + row) * p.out_columns + column;
    float z[8];
    gather(sums, i, u, z);
    finish<Operand, PLAIN, true>(p, z, lines, at * p.N + feature);
    store<Operand>(p, z, at * p.N + feature);
  }
}

// The same where the pixels are a square, of which Y has the maxima.
template <class Operand, bool PLAIN>
__device__ void finish_square(const Parameters& p, const float (&sums)[2][kTiles][4], int u,
                              const float4 (&lines)[4], const Tile& tile, int first, int feature) {
  float most[8];
  gather(sums, 0, u, most);
  finish<Operand, PLAIN, false>(p, most, lines, 0);
#pragma unroll
  for (int i = 1; i < 4; ++i) {
    float z[8];
    gather(sums, i, u, z);
    finish<Operand, PLAIN, false>(p, z, lines, 0);
#pragma unroll
    for (int f = 0; f < 8; ++f) most[f] = max_or_nan(most[f], z[f]);
  }
  const Place place = place_of<true>(p, first, 0);
  const int row = (tile.row + place.row) / 2, column = (tile.column + place.column) / 2;
  const int rows = p.out_rows / 2, columns = p.out_columns / 2;
  const size_t at = (static_cast<size_t>(tile.image) * rows + row) * columns + column;
  if (row < rows && column < columns) store<Operand>(p, most, at * p.N + feature);
}

// Ends a warp's 32 pixels, `first` as for place_of. lines: scale and bias of the block's features.
template <class Operand, bool PLAIN, bool POOLED>
__device__ void finish_all(const Parameters& p, const float (&sums)[2][kTiles][4], const float4* lines,
                           const Tile& tile, int first, int feature) {
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int u = 0; u < kTiles; u += 4) {
    const int within = 8 * u + 8 * q;
    if (feature + within >= p.N) continue;
    const float4* from = lines + within / 2;
    const float4 mine[4] = {from[0], from[1], from[2], from[3]};
    if constexpr (POOLED) {
      finish_square<Operand, PLAIN>(p, sums, u, mine, tile, first, feature + within);
    } else {
      finish_pixels<Operand, PLAIN>(p, sums, u, mine, tile, first, feature + within);
    }
  }
}

template <class Operand, bool POOLED>
__device__ void convolve(const Parameters& p) {
  extern __shared__ uint4 shared[];
  uint4* weight = shared;  // (steps, kTiles / 2, 32)
  auto* pairs = reinterpret_cast<int2*>(weight + p.steps * (kTiles / 2) * 32);
  auto* lines = reinterpret_cast<float2*>(pairs + p.steps * kStepPairs);
  auto* patches = reinterpret_cast<uint32_t*>(lines + kFeatures);
  const int patch_words = p.patch_rows * p.pitch;
  const int part = blockIdx.x % p.parts, stride = gridDim.x / p.parts;
  int index = blockIdx.x / p.parts;
  const int words = p.steps * (kTiles / 2) * 32;
  for (int i = threadIdx.x; i < words; i += kThreads) copy<16>(weight + i, p.weight + part * words + i);
  if (threadIdx.x < kFeatures) copy<8>(lines + threadIdx.x, p.lines + part * kFeatures + threadIdx.x);
  const int first = threadIdx.x / 32 * kWarpPixels + threadIdx.x % 32 / 4;
  Pixels pixels;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Place place = place_of<POOLED>(p, first, i);
    const int value = place.column * p.column_stride * p.channels;
    pixels.word[i] = place.row * p.row_stride * p.pitch + value / 2;
    pixels.bits[i] = value % 2 * 16;
  }
  const bool plain = p.epilogue.curve == 0 && !p.epilogue.gated;
  wait_for_operands();
  load_patch(p, index, patches);
  commit_copies();
  for (int i = threadIdx.x; i < p.steps * kStepPairs; i += kThreads) {
    const int2 pair = p.pairs[i];
    pairs[i] = {(pair.x >> 16) * p.pitch + (pair.x & 0xffff), pair.y};
  }
  for (int turn = 0; index < p.tiles; index += stride, turn ^= 1) {
    if (index + stride < p.tiles) load_patch(p, index + stride, patches + (turn ^ 1) * patch_words);
    commit_copies();
    wait_copies<1>();
    __syncthreads();  // all have this tile's patch
    float sums[2][kTiles][4];
    const uint32_t* patch = patches + turn * patch_words;
    if (p.odd) {
      multiply<Operand, true>(p.steps, patch, pixels, weight, pairs, sums);
    } else {
      multiply<Operand, false>(p.steps, patch, pixels, weight, pairs, sums);
    }
    __syncthreads();  // the patch may be filled again
    const auto* both = reinterpret_cast<const float4*>(lines);
    const Tile tile = tile_at(p, index);
    if (plain) {
      finish_all<Operand, true, POOLED>(p, sums, both, tile, first, part * kFeatures);
    } else {
      finish_all<Operand, false, POOLED>(p, sums, both, tile, first, part * kFeatures);
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 2) fp16(const __grid_constant__ Parameters p) {
  convolve<HalfOperand, false>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads, 2) bf16(const __grid_constant__ Parameters p) {
  convolve<Bfloat16Operand, false>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads, 2) fp16_pooled(const __grid_constant__ Parameters p) {
  convolve<HalfOperand, true>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads, 2) bf16_pooled(const __grid_constant__ Parameters p) {
  convolve<Bfloat16Operand, true>(p);
}
