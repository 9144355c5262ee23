#include "cpu_conv.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu_elements.h"

namespace deftonnx {

CpuConv::CpuConv(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y)
    : spec_(ReadConvSpec(ort, info, x, y)), packed_(ort, info, spec_, spec_.group) {
  Tensor kept;
  if (spec_.block > 0) {
    ort.ConstantInput(info, kInputKept, &kept);
    CheckKept(spec_, static_cast<const int32_t*>(kept.data), kept.shape[0]);
  }
  for (int64_t g = 0; g < spec_.group; ++g) {
    runs_.push_back(FilterRuns(spec_, static_cast<const int32_t*>(kept.data), g));
  }
}

// What the filters of a group see of X at one pixel of Y, as float32; zeros where they hang over the image.
void CpuConv::ReadWindow(const ConvInputs& inputs, int64_t group, int64_t pixel, float* row) const {
  const ConvShape& shape = inputs.shape;
  const int64_t column = pixel % shape.out_columns, line = pixel / shape.out_columns;
  const int64_t image = line / shape.out_rows;
  const int64_t top = line % shape.out_rows * spec_.rows.stride - spec_.rows.pad_begin;
  const int64_t left = column * spec_.columns.stride - spec_.columns.pad_begin;
  for (const FilterRun& run : runs_[group]) {
    const int64_t r = top + run.row * spec_.rows.dilation, c = left + run.column * spec_.columns.dilation;
    if (r < 0 || r >= shape.in_rows || c < 0 || c >= shape.in_columns) {
      std::fill_n(row, run.count, 0.0f);
    } else {
      const int64_t start =
          ((image * shape.in_rows + r) * shape.in_columns + c) * spec_.channels + run.channel;
      for (int64_t i = 0; i < run.count; ++i) row[i] = LoadFloat(inputs.x, spec_.x_type, start + i);
    }
    row += run.count;
  }
}

void CpuConv::Compute(const Ort& ort, OrtKernelContext* context) const {
  const ConvInputs inputs = ReadInputs(spec_, ort, context);
  void* y = ort.Output(context, 0, inputs.y_shape);
  if (spec_.pool > 1) {
    std::vector<char> pixels(inputs.shape.Pixels() * spec_.N * ElementBytes(spec_.y_type));
    Convolve(ort, context, inputs, pixels.data());
    Pool(ort, context, inputs.shape, pixels.data(), y);
  } else {
    Convolve(ort, context, inputs, y);
  }
}

void CpuConv::Convolve(const Ort& ort, OrtKernelContext* context, const ConvInputs& inputs, void* y) const {
  const auto read = [&](int64_t group, int64_t pixel, float* row) { ReadWindow(inputs, group, pixel, row); };
  packed_.Multiply(ort, context, inputs.shape.Pixels(), read, inputs.residual, y);
}

void CpuConv::Pool(const Ort& ort, OrtKernelContext* context, const ConvShape& shape, const void* pixels,
                   void* y) const {
  const int64_t N = spec_.N, pool = spec_.pool;
  const int64_t rows = shape.out_rows / pool, columns = shape.out_columns / pool;
  InParallel(ort, context, shape.batch * rows, [&](size_t line) {
    const int64_t image = line / rows, top = line % rows * pool;
    for (int64_t i = 0; i < columns * N; ++i) {
      const int64_t column = i / N * pool, n = i % N;
      float most = -std::numeric_limits<float>::infinity();
      for (int64_t tap = 0; tap < pool * pool; ++tap) {
        const int64_t row = image * shape.out_rows + top + tap / pool;
        const float z =
            LoadFloat(pixels, spec_.y_type, (row * shape.out_columns + column + tap % pool) * N + n);
        most = most < z || std::isnan(z) ? z : most;
      }
      StoreFloat(y, spec_.y_type, static_cast<int64_t>(line) * columns * N + i, most);
    }
  });
}

}  // namespace deftonnx
