// Pooling and local response normalisation of images with channels last. Bound by memory: a thread reads 16
// bytes of neighbouring channels at a time, neighbouring threads neighbouring channels. Sums are float32, in
// a fixed order.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "early_start.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kBatch = 9;  // taps of a thread: all of a window of 3x3

// The field order is that of runtime/cuda_pool.cpp.
struct PoolParameters {
  const void* x;    // (batch, in_rows, in_columns, channels)
  void* y;          // (batch, out_rows, out_columns, channels)
  long long items;  // vectors of Y
  int vectors;      // of a pixel
  int slices;       // threads that share a window: 1, or a divisor of a block's threads
  int in_rows, in_columns, out_rows, out_columns;
  int kernel_rows, kernel_columns, row_stride, column_stride, row_start, column_start;
  int row_dilation, column_dilation;
  int counted_rows, counted_columns;  // taps before it are averaged, 0: those inside the image
  int reach;                          // channels that a normalisation sees on either side
  float alpha, beta, bias;            // alpha: of the sum of squares
};

template <class Element, int WIDTH>
struct alignas(sizeof(Element) * WIDTH) Vector {
  Element values[WIDTH];
};

struct Maximum {
  static constexpr float kStart = -__builtin_huge_valf();
  static __device__ float combine(float a, float b) {  // NaN wins
    float c;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
    return c;
  }
};

struct Sum {
  static constexpr float kStart = 0.0f;
  static __device__ float combine(float a, float b) { return a + b; }
};

// The pixel of Y that a vector of it belongs to, and its place in the pixel.
struct Place {
  unsigned pixel;
  int vector;
};

__device__ Place place_of(const PoolParameters& p, long long item) {
  const auto short_item = static_cast<unsigned>(item);  // 64 bits take long to divide
  const auto pixel = p.items >> 32 == 0 ? short_item / p.vectors : static_cast<unsigned>(item / p.vectors);
  return {pixel, static_cast<int>(short_item - pixel * p.vectors)};
}

// Where the window of one pixel of Y begins.
struct Corner {
  long long image;  // rows of X before it
  int row, column;
};

__device__ Corner corner_of(const PoolParameters& p, unsigned pixel) {
  const unsigned line = pixel / p.out_columns, image = line / p.out_rows;
  return {static_cast<long long>(image) * p.in_rows,
          static_cast<int>(line - image * p.out_rows) * p.row_stride + p.row_start,
          static_cast<int>(pixel - line * p.out_columns) * p.column_stride + p.column_start};
}

// Taps of a window along one axis that begins at `start` and counts up to `end`.
__device__ int taps_below(int start, int end, int kernel, int dilation) {
  return end <= start ? 0 : min(kernel, (end - start - 1) / dilation + 1);
}

// How many values the window's average is over.
__device__ float values_counted(const PoolParameters& p, const Corner& c) {
  if (p.counted_rows > 0) {
    return static_cast<float>(taps_below(c.row, p.counted_rows, p.kernel_rows, p.row_dilation) *
                              taps_below(c.column, p.counted_columns, p.kernel_columns, p.column_dilation));
  }
  const int rows = taps_below(c.row, p.in_rows, p.kernel_rows, p.row_dilation) -
                   taps_below(c.row, 0, p.kernel_rows, p.row_dilation);
  const int columns = taps_below(c.column, p.in_columns, p.kernel_columns, p.column_dilation) -
                      taps_below(c.column, 0, p.kernel_columns, p.column_dilation);
  return static_cast<float>(rows * columns);
}

// Combines every `slices`-th tap of the window from tap `slice` on; the loads of kBatch taps are under way
// together. Waits for X once it is known where the first ones lie.
template <class Combination, class Element, int WIDTH>
__device__ void combine_taps(const PoolParameters& p, const Corner& c, int vector, int slice,
                             float (&z)[WIDTH]) {
  const auto* x =
      static_cast<const Vector<Element, WIDTH>*>(p.x) + c.image * p.in_columns * p.vectors + vector;
  int row = slice / p.kernel_columns, column = slice % p.kernel_columns;
  for (bool first = true; row < p.kernel_rows; first = false) {
    Vector<Element, WIDTH> read[kBatch];
    int pixel[kBatch];  // of the image, or -1 outside
#pragma unroll
    for (int t = 0; t < kBatch; ++t) {
      const int r = c.row + row * p.row_dilation, s = c.column + column * p.column_dilation;
      const bool inside = row < p.kernel_rows && r >= 0 && r < p.in_rows && s >= 0 && s < p.in_columns;
      pixel[t] = inside ? r * p.in_columns + s : -1;
      column += p.slices;
      while (column >= p.kernel_columns) column -= p.kernel_columns, ++row;
    }
    if (first) wait_for_operands();
#pragma unroll
    for (int t = 0; t < kBatch; ++t) {
      if (pixel[t] >= 0) read[t] = x[static_cast<long long>(pixel[t]) * p.vectors];
    }
#pragma unroll
    for (int t = 0; t < kBatch; ++t) {
      if (pixel[t] < 0) continue;
#pragma unroll
      for (int i = 0; i < WIDTH; ++i)
        z[i] = Combination::combine(z[i], static_cast<float>(read[t].values[i]));
    }
  }
}

// The slices of a window meet in shared memory; all is in the first one's z.
template <class Combination, int WIDTH>
__device__ void combine_slices(const PoolParameters& p, int slice, float (&z)[WIDTH]) {
  __shared__ float parts[WIDTH][kThreads];
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) parts[i][threadIdx.x] = z[i];
  __syncthreads();
  if (slice > 0) return;
  for (int other = kThreads / p.slices + threadIdx.x; other < kThreads; other += kThreads / p.slices) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) z[i] = Combination::combine(z[i], parts[i][other]);
  }
}

template <class Combination, bool AVERAGE, class Element, int WIDTH>
__device__ void pool(const PoolParameters& p) {
  const int own_items = kThreads / p.slices;
  const int slice = threadIdx.x / own_items;
  const long long item = static_cast<long long>(blockIdx.x) * own_items + threadIdx.x % own_items;
  const Place place = place_of(p, min(item, p.items - 1));
  const Corner c = corner_of(p, place.pixel);
  float z[WIDTH];
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) z[i] = Combination::kStart;
  if (item < p.items) combine_taps<Combination, Element>(p, c, place.vector, slice, z);
  if (p.slices > 1) combine_slices<Combination>(p, slice, z);
  if (item >= p.items || slice > 0) return;
  const float divisor = AVERAGE ? values_counted(p, c) : 1.0f;
  Vector<Element, WIDTH> result;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) result.values[i] = static_cast<Element>(AVERAGE ? z[i] / divisor : z[i]);
  static_cast<Vector<Element, WIDTH>*>(p.y)[item] = result;
}

__device__ float normalising(const PoolParameters& p, float squares) {
  return exp2f(-p.beta * log2f(p.bias + p.alpha * squares));
}

// Over at most WIDTH channels on either side: a thread reads its vector and the two beside it.
template <class Element, int WIDTH>
__device__ void normalise_channels(const PoolParameters& p) {
  const long long item = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= p.items) return;
  const int vector = place_of(p, item).vector;
  const auto* x = static_cast<const Vector<Element, WIDTH>*>(p.x) + item;
  wait_for_operands();
  Vector<Element, WIDTH> read[3] = {};
  read[1] = x[0];
  if (vector > 0) read[0] = x[-1];
  if (vector + 1 < p.vectors) read[2] = x[1];
  float values[3 * WIDTH], squares[WIDTH] = {};
#pragma unroll
  for (int i = 0; i < 3 * WIDTH; ++i) values[i] = static_cast<float>(read[i / WIDTH].values[i % WIDTH]);
#pragma unroll
  for (int distance = -WIDTH; distance <= WIDTH; ++distance) {
    if (abs(distance) > p.reach) continue;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      const float value = values[WIDTH + i + distance];
      squares[i] += value * value;
    }
  }
  Vector<Element, WIDTH> result;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    result.values[i] = static_cast<Element>(values[WIDTH + i] * normalising(p, squares[i]));
  }
  static_cast<Vector<Element, WIDTH>*>(p.y)[item] = result;
}

// Over any window, one channel a thread: neighbours' values come from the first-level cache.
template <class Element>
__device__ void normalise(const PoolParameters& p) {
  const long long item = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= p.items) return;
  const auto* x = static_cast<const Element*>(p.x);
  const auto [pixel, channel] = place_of(p, item);
  const Corner c = corner_of(p, pixel);
  const int first = max(channel - p.reach, 0), last = min(channel + p.reach, p.vectors - 1);
  float squares = 0.0f;
  wait_for_operands();
  for (int row = max(c.row, 0); row < min(c.row + p.kernel_rows, p.in_rows); ++row) {
    for (int column = max(c.column, 0); column < min(c.column + p.kernel_columns, p.in_columns); ++column) {
      const Element* pixel = x + ((c.image + row) * p.in_columns + column) * p.vectors;
      for (int i = first; i <= last; ++i) {
        const float value = static_cast<float>(pixel[i]);
        squares += value * value;
      }
    }
  }
  static_cast<Element*>(p.y)[item] =
      static_cast<Element>(static_cast<float>(x[item]) * normalising(p, squares));
}

}  // namespace

#define POOL(NAME, ELEMENT, WIDTH)                               \
  extern "C" __global__ void __launch_bounds__(kThreads)         \
      max_##NAME(const __grid_constant__ PoolParameters p) {     \
    pool<Maximum, false, ELEMENT, WIDTH>(p);                     \
  }                                                              \
  extern "C" __global__ void __launch_bounds__(kThreads)         \
      average_##NAME(const __grid_constant__ PoolParameters p) { \
    pool<Sum, true, ELEMENT, WIDTH>(p);                          \
  }

#define NORMALISE(NAME, ELEMENT, WIDTH)                                      \
  extern "C" __global__ void __launch_bounds__(kThreads)                     \
      normalise_##NAME##_##WIDTH(const __grid_constant__ PoolParameters p) { \
    normalise_channels<ELEMENT, WIDTH>(p);                                   \
  }                                                                          \
  extern "C" __global__ void __launch_bounds__(kThreads)                     \
      normalise_##NAME##_1(const __grid_constant__ PoolParameters p) {       \
    normalise<ELEMENT>(p);                                                   \
  }

POOL(fp32_4, float, 4)
POOL(fp32_1, float, 1)
POOL(fp16_8, __half, 8)
POOL(fp16_1, __half, 1)
POOL(bf16_8, __nv_bfloat16, 8)
POOL(bf16_1, __nv_bfloat16, 1)
NORMALISE(fp32, float, 4)
NORMALISE(fp16, __half, 8)
NORMALISE(bf16, __nv_bfloat16, 8)
