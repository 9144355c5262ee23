// DeftConv without tensor cores: every type, group count, filter and kept block, in float32. A thread sums
// one output channel at PIXELS neighbouring pixels, or those of a square of which Y has the maximum, which
// share what it reads of W; neighbouring threads have neighbouring channels.
#include "activate_all.cuh"
#include "early_start.cuh"

namespace {

constexpr int kPixels = 4;

// The field order is that of runtime/conv_direct.cpp.
struct DirectParameters {
  const void* x;         // (batch, in_rows, in_columns, channels)
  const float* weight;   // (K, N)
  const float* scale;    // (N,)
  const float* bias;     // (N,)
  const int4* runs;      // (groups, runs): channel, row and column of the tap, channels
  const void* residual;  // (pixels, N) or null
  void* y;               // (pixels, N), or (pixels / kPixels, N) of squares
  long long pixels;      // square by square where these are pooled
  int N, outputs;        // outputs: N / groups
  int run_count;         // of a group
  int channels, in_rows, in_columns, out_rows, out_columns;
  int row_stride, column_stride, row_start, column_start, row_dilation, column_dilation;
  int pool;  // rows and columns of a square: 1 or 2
  Epilogue epilogue;
};

// The first input row, column and image that the windows of a thread's pixels see.
struct Corners {
  int row[kPixels], column[kPixels];
  long long image[kPixels];  // rows of X before it; negative behind the last pixel
};

__device__ Corners corners(const DirectParameters& p, long long first) {
  Corners c;
  const bool pooled = p.pool > 1;
  const int rows = p.out_rows / p.pool, columns = p.out_columns / p.pool;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const long long place = pooled ? first / kPixels : first + i, line = place / columns;
    const int column = static_cast<int>(place % columns) * p.pool + (pooled ? i % 2 : 0);
    const int row = static_cast<int>(line % rows) * p.pool + (pooled ? i / 2 : 0);
    c.column[i] = column * p.column_stride + p.column_start;
    c.row[i] = row * p.row_stride + p.row_start;
    c.image[i] = first + i < p.pixels ? line / rows * p.in_rows : -1;
  }
  return c;
}

template <class Element>
__device__ void add_run(const DirectParameters& p, const Corners& c, const int4& run, const float* weight,
                        float (&sums)[kPixels]) {
  const Element* from[kPixels];
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const int row = c.row[i] + run.y * p.row_dilation, column = c.column[i] + run.z * p.column_dilation;
    const bool inside =
        c.image[i] >= 0 && row >= 0 && row < p.in_rows && column >= 0 && column < p.in_columns;
    const long long place = ((c.image[i] + row) * p.in_columns + column) * p.channels + run.x;
    from[i] = inside ? static_cast<const Element*>(p.x) + place : nullptr;
  }
  for (int k = 0; k < run.w; ++k) {
    const float w = weight[static_cast<long long>(k) * p.N];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      if (from[i] != nullptr) sums[i] += static_cast<float>(from[i][k]) * w;
    }
  }
}

template <class Element>
__device__ void convolve(const DirectParameters& p) {
  const long long item = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int n = static_cast<int>(item % p.N);
  const long long first = item / p.N * kPixels;
  if (first >= p.pixels) return;
  const Corners c = corners(p, first);
  const int4* runs = p.runs + n / p.outputs * p.run_count;
  const float* weight = p.weight + n;
  float sums[kPixels] = {};
  wait_for_operands();
  for (int r = 0; r < p.run_count; ++r) {
    const int4 run = runs[r];
    add_run<Element>(p, c, run, weight, sums);
    weight += static_cast<long long>(run.w) * p.N;
  }
  if (p.pool > 1) {
    float most = -__builtin_huge_valf();
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      most = max_or_nan(most, activate(p.epilogue, sums[i] * p.scale[n] + p.bias[n]));
    }
    store_float(p.y, static_cast<size_t>(first / kPixels) * p.N + n, p.epilogue.y_type, most);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (first + i >= p.pixels) return;
    const size_t place = static_cast<size_t>(first + i) * p.N + n;
    float z = sums[i] * p.scale[n] + p.bias[n];
    if (p.residual != nullptr) z += load_float(p.residual, place, p.epilogue.y_type);
    store_float(p.y, place, p.epilogue.y_type, activate(p.epilogue, z));
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) fp32(const __grid_constant__ DirectParameters p) {
  convolve<float>(p);
}
extern "C" __global__ void __launch_bounds__(256) fp16(const __grid_constant__ DirectParameters p) {
  convolve<__half>(p);
}
extern "C" __global__ void __launch_bounds__(256) bf16(const __grid_constant__ DirectParameters p) {
  convolve<__nv_bfloat16>(p);
}
