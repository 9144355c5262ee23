// DeftGemm on the FP32 units: the paper's near-compute data fission (section 4.2). Shared memory holds X and
// W as they are stored, two or four values a word, and they are unpacked next to the multiply-add.
//
// A block of 256 threads makes a (16 T, 16 T) tile of Y, a thread T by T values of it. The K loop takes 16
// features a step, through two buffers of shared memory; the next step is on its way from global memory to
// registers meanwhile. In shared memory a word is one output feature (or row of X) at 1, 2 or 4 neighbouring
// features, and words of the same features lie side by side: a thread reads its values 16 bytes at a time.
//
// Any shape and any kept block; X is read 16 bytes at a time where its rows allow. Sums are float32, in the
// order of K. Needs nothing newer than sm_75.
#include <cstdint>

#include "epilogue.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kStep = 16;  // features: the padding of W's rows, so that only X needs a check

struct Problem {
  const char* x;
  const char* w;
  const float* scale;
  const float* bias;
  const int* kept;
  const void* residual;
  void* y;
  int M, N, K, features, padded_K, block_shift, decode_shift;
  float decode_factor;
  int wide_loads;  // X can be read 16 bytes at a time
  Epilogue epilogue;
};

struct Decoding {
  int shift;
  float factor;
};

// Formats: kValues values a word, and the pair of them that begins at `first`.
struct Fp32 {
  static constexpr int kValues = 1;
};

struct Half {
  static constexpr int kValues = 2;
  static __device__ float2 unpack(uint32_t word, int, Decoding) {
    return __half22float2(reinterpret_cast<const __half2&>(word));
  }
};

struct Deft16 {
  static constexpr int kValues = 2;
  static __device__ float2 unpack(uint32_t word, int, Decoding) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
  }
};

struct Deft16q {
  static constexpr int kValues = 2;
  static __device__ float2 unpack(uint32_t word, int, Decoding) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word));
  }
};

struct Deft8 {
  static constexpr int kValues = 4;
  // The code's bits at the top of a word, the magnitude shifted until the exponents' lowest bits meet, are a
  // float too small by the factor, subnormals included.
  static __device__ float value(uint32_t top, Decoding d) {
    const uint32_t bits = (top & 0x80000000u) | ((top & 0x7f000000u) >> d.shift);
    return __uint_as_float(bits) * d.factor;
  }
  static __device__ float2 unpack(uint32_t word, int first, Decoding d) {
    return make_float2(value(word << (24 - 8 * first), d), value(word << (16 - 8 * first), d));
  }
};

// One step's words: of X (rows of X) or of W (output features).
template <class Format, int ROWS>
struct Tile {
  static constexpr int kPieces = 4 / Format::kValues;  // 16-byte pieces of a row
  static constexpr int kLoads = (ROWS * kPieces + kThreads - 1) / kThreads;
  uint32_t words[kStep / Format::kValues][ROWS + 4];  // padded: fewer bank conflicts when pieces are stored

  // Visits the pieces of this thread: load i, row, piece.
  template <class Body>
  static __device__ void each_piece(Body body) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = threadIdx.x + i * kThreads;
      if (index < ROWS * kPieces) body(i, index / kPieces, index % kPieces);
    }
  }

  __device__ void store(const uint4 (&pieces)[kLoads]) {
    each_piece([&](int i, int row, int piece) {
      words[piece * 4][row] = pieces[i].x;
      words[piece * 4 + 1][row] = pieces[i].y;
      words[piece * 4 + 2][row] = pieces[i].z;
      words[piece * 4 + 3][row] = pieces[i].w;
    });
  }

  // The words of T rows, in groups of four that are 64 rows apart.
  template <int T>
  __device__ void read_words(uint32_t (&out)[T], int word, int thread) const {
#pragma unroll
    for (int group = 0; group < T / 4; ++group) {
      const uint4 four = *reinterpret_cast<const uint4*>(&words[word][group * 64 + thread * 4]);
      out[group * 4] = four.x, out[group * 4 + 1] = four.y, out[group * 4 + 2] = four.z,
                  out[group * 4 + 3] = four.w;
    }
  }

  // Features k and k + 1 of T rows; `cached` are the words when a word has more than two values.
  template <int T>
  __device__ void read_pair(float (&value)[2][T], uint32_t (&cached)[T], int k, int thread,
                            Decoding d) const {
    if constexpr (Format::kValues == 1) {
      uint32_t* bits[2] = {reinterpret_cast<uint32_t*>(value[0]), reinterpret_cast<uint32_t*>(value[1])};
      for (int i = 0; i < 2; ++i) read_words<T>(reinterpret_cast<uint32_t (&)[T]>(*bits[i]), k + i, thread);
    } else {
      if (k % Format::kValues == 0) read_words<T>(cached, k / Format::kValues, thread);
#pragma unroll
      for (int i = 0; i < T; ++i) {
        const float2 pair = Format::unpack(cached[i], k % Format::kValues, d);
        value[0][i] = pair.x, value[1][i] = pair.y;
      }
    }
  }
};

// Column of X of feature k of the shortened K.
__device__ int x_column(const Problem& p, int k) {
  if (p.kept == nullptr) return k;
  return (p.kept[k >> p.block_shift] << p.block_shift) + (k & ((1 << p.block_shift) - 1));
}

// 16 bytes of a row of X from feature k on, one element at a time; zeros behind K.
template <class Format>
__device__ uint4 gather_piece(const Problem& p, size_t row, int k) {
  constexpr int kBytes = 4 / Format::kValues;
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 4 * Format::kValues; ++i) {
    if (k + i >= p.K) continue;
    const char* element = p.x + (row * p.features + x_column(p, k + i)) * kBytes;
    const uint32_t bits = kBytes == 4 ? *reinterpret_cast<const uint32_t*>(element)
                                      : *reinterpret_cast<const uint16_t*>(element);
    words[i / Format::kValues] |= bits << (i % Format::kValues * 16 % 32);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Row and column of this block's tile: columns of 8 row tiles, so that neighbours in time share rows of W.
__device__ int2 tile_index(int rows, int columns) {
  const int tile = blockIdx.x, group = tile / (8 * columns), within = tile % (8 * columns);
  const int height = min(rows - group * 8, 8);
  return make_int2(group * 8 + within % height, within / height);
}

template <class XFormat, class WFormat, int T>
__device__ void gemm(const Problem& p) {
  constexpr int kTile = 16 * T;
  using XTile = Tile<XFormat, kTile>;
  using WTile = Tile<WFormat, kTile>;
  struct Stage {
    XTile x;
    WTile w;
  };
  constexpr int kOutputRows = kTile / (T / 4);  // of Y that go through shared memory at a time
  union Memory {
    Stage stages[2];
    float y[kOutputRows][kTile + 4];
  };
  __shared__ __align__(16) unsigned char bytes[sizeof(Memory)];
  Memory& memory = *reinterpret_cast<Memory*>(bytes);

  const int2 tile = tile_index((p.M + kTile - 1) / kTile, (p.N + kTile - 1) / kTile);
  const int first_m = tile.x * kTile, first_n = tile.y * kTile;
  // a warp is 4 threads of rows by 8 of columns
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int thread_m = warp / 2 * 4 + lane / 8, thread_n = warp % 2 * 8 + lane % 8;
  const Decoding decoding{p.decode_shift, p.decode_factor};

  uint4 x_pieces[XTile::kLoads], w_pieces[WTile::kLoads];
  const auto load = [&](int k) {
    // rows beyond the end read the last row: their results are not stored
    XTile::each_piece([&](int i, int row, int piece) {
      const size_t m = min(first_m + row, p.M - 1);
      const int start = k + piece * 4 * XFormat::kValues;
      if (p.wide_loads) {
        const size_t element = m * p.features + x_column(p, start);
        x_pieces[i] = __ldg(reinterpret_cast<const uint4*>(p.x + element * (4 / XFormat::kValues)));
      } else {
        x_pieces[i] = gather_piece<XFormat>(p, m, start);
      }
    });
    WTile::each_piece([&](int i, int row, int piece) {
      const size_t n = min(first_n + row, p.N - 1);
      const size_t bytes_before = n * (p.padded_K / WFormat::kValues) * 4 + k / WFormat::kValues * 4;
      w_pieces[i] = __ldg(reinterpret_cast<const uint4*>(p.w + bytes_before) + piece);
    });
  };

  float sum[T][T] = {};
  load(0);
  memory.stages[0].x.store(x_pieces);
  memory.stages[0].w.store(w_pieces);
  __syncthreads();
  for (int k = 0, parity = 0; k < p.K; k += kStep, parity ^= 1) {
    const bool more = k + kStep < p.K;
    if (more) load(k + kStep);
    const Stage& stage = memory.stages[parity];
    uint32_t x_words[T], w_words[T];
#pragma unroll
    for (int pair = 0; pair < kStep; pair += 2) {
      float x[2][T], w[2][T];
      stage.x.template read_pair<T>(x, x_words, pair, thread_m, decoding);
      stage.w.template read_pair<T>(w, w_words, pair, thread_n, decoding);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int m = 0; m < T; ++m) {
#pragma unroll
          for (int n = 0; n < T; ++n) sum[m][n] = fmaf(x[i][m], w[i][n], sum[m][n]);
        }
      }
    }
    if (more) {
      memory.stages[parity ^ 1].x.store(x_pieces);
      memory.stages[parity ^ 1].w.store(w_pieces);
    }
    __syncthreads();
  }

#pragma unroll
  for (int part = 0; part < T / 4; ++part) {
    if (part > 0) __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int n = 0; n < T; ++n) {
        memory.y[thread_m * 4 + i][n / 4 * 64 + thread_n * 4 + n % 4] = sum[part * 4 + i][n];
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < kOutputRows * kTile; i += kThreads) {
      const int row = i / kTile, column = i % kTile;
      const int m = first_m + part * 64 + row, n = first_n + column;
      if (m >= p.M || n >= p.N) continue;
      float z = memory.y[row][column] * p.scale[n] + p.bias[n];
      const size_t index = static_cast<size_t>(m) * p.N + n;
      if (p.residual != nullptr) z += load_float(p.residual, index, p.epilogue.y_type);
      store_float(p.y, index, p.epilogue.y_type, activate(p.epilogue, z));
    }
  }
}

}  // namespace

// Parameters in the order of gemm_tensor_core.py, and wide_loads. deft8 is decoded by the float32 factor.
#define KERNEL(X, X_FORMAT, W, W_FORMAT, T)                                                                 \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                      \
      X##_##W##_##T(const char* x, const char* w, const float* scale, const float* bias, const int* kept,   \
                    const void* residual, void* y, int M, int N, int K, int features, int padded_K,         \
                    int block_shift, int decode_shift, unsigned, float decode_factor, int curve, int gated, \
                    float slope, float offset, float low, float high, int y_type, int wide_loads) {         \
    gemm<X_FORMAT, W_FORMAT, T>({x,                                                                         \
                                 w,                                                                         \
                                 scale,                                                                     \
                                 bias,                                                                      \
                                 kept,                                                                      \
                                 residual,                                                                  \
                                 y,                                                                         \
                                 M,                                                                         \
                                 N,                                                                         \
                                 K,                                                                         \
                                 features,                                                                  \
                                 padded_K,                                                                  \
                                 block_shift,                                                               \
                                 decode_shift,                                                              \
                                 decode_factor,                                                             \
                                 wide_loads,                                                                \
                                 {curve, gated, slope, offset, low, high, y_type}});                        \
  }
#define KERNELS(X, X_FORMAT, T)            \
  KERNEL(X, X_FORMAT, fp32, Fp32, T)       \
  KERNEL(X, X_FORMAT, half, Half, T)       \
  KERNEL(X, X_FORMAT, deft16, Deft16, T)   \
  KERNEL(X, X_FORMAT, deft16q, Deft16q, T) \
  KERNEL(X, X_FORMAT, deft8, Deft8, T)

KERNELS(fp32, Fp32, 4)
KERNELS(fp32, Fp32, 8)
KERNELS(fp16, Half, 4)
KERNELS(fp16, Half, 8)
KERNELS(bf16, Deft16, 4)
KERNELS(bf16, Deft16, 8)
