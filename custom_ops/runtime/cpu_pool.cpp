#include "cpu_pool.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu_elements.h"

namespace deftonnx {
namespace {

// The part of a window along one axis that lies inside the image.
struct Span {
  int64_t first, count;  // first tap's place; taps
  int64_t padded;        // taps inside the padded image
};

Span Inside(const Axis& axis, int64_t output, int64_t size) {
  int64_t start = output * axis.stride - axis.pad_begin;
  const auto taps_below = [&](int64_t end) {
    return end <= start ? 0 : std::min(axis.kernel, (end - start - 1) / axis.dilation + 1);
  };
  const int64_t before = taps_below(0);
  return {start + before * axis.dilation, taps_below(size) - before, taps_below(size + axis.pad_end)};
}

// Calls visit(first element of a pixel of X) for the taps of a window inside the image.
template <class Visit>
void ForEachTap(const PoolCall& call, int64_t image, const Span& rows, const Span& columns, Visit visit) {
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t line = image * call.in_rows + rows.first + r * call.rows.dilation;
    for (int64_t c = 0; c < columns.count; ++c) {
      visit((line * call.in_columns + columns.first + c * call.columns.dilation) * call.channels);
    }
  }
}

}  // namespace

void CpuPool::PoolPixel(const PoolCall& call, int64_t pixel, void* y) const {
  const int64_t line = pixel / call.out_columns, image = line / call.out_rows;
  const Span rows = Inside(call.rows, line % call.out_rows, call.in_rows);
  const Span columns = Inside(call.columns, pixel % call.out_columns, call.in_columns);
  const bool is_max = spec_.kind == PoolKind::kMax;
  std::vector<float> result(call.channels, is_max ? -std::numeric_limits<float>::infinity() : 0);
  ForEachTap(call, image, rows, columns, [&](int64_t place) {
    for (int64_t i = 0; i < call.channels; ++i) {
      const float value = LoadFloat(call.x, spec_.type, place + i);
      if (is_max) {
        if (value > result[i] || std::isnan(value)) result[i] = value;  // NaN wins
      } else {
        result[i] += value;
      }
    }
  });
  const bool padded = spec_.kind == PoolKind::kAveragePadded;
  const int64_t count = padded ? rows.padded * columns.padded : rows.count * columns.count;
  const float divisor = is_max ? 1 : static_cast<float>(count);
  for (int64_t i = 0; i < call.channels; ++i) {
    StoreFloat(y, spec_.type, pixel * call.channels + i, result[i] / divisor);
  }
}

void CpuPool::NormalisePixel(const PoolCall& call, int64_t pixel, void* y) const {
  const int64_t line = pixel / call.out_columns, image = line / call.out_rows;
  const Span rows = Inside(call.rows, line % call.out_rows, call.in_rows);
  const Span columns = Inside(call.columns, pixel % call.out_columns, call.in_columns);
  const int64_t reach = spec_.size / 2;
  const float mean_of = spec_.alpha / static_cast<float>(spec_.size * call.Taps());
  for (int64_t i = 0; i < call.channels; ++i) {
    float squares = 0;
    ForEachTap(call, image, rows, columns, [&](int64_t place) {
      const int64_t last = std::min(i + reach, call.channels - 1);
      for (int64_t c = std::max<int64_t>(i - reach, 0); c <= last; ++c) {
        const float value = LoadFloat(call.x, spec_.type, place + c);
        squares += value * value;
      }
    });
    const int64_t place = pixel * call.channels + i;
    const float scale = std::pow(spec_.bias + mean_of * squares, -spec_.beta);
    StoreFloat(y, spec_.type, place, LoadFloat(call.x, spec_.type, place) * scale);
  }
}

void CpuPool::Compute(const Ort& ort, OrtKernelContext* context) const {
  std::vector<int64_t> y_shape;
  const PoolCall call = ReadPoolCall(spec_, ort, context, &y_shape);
  void* y = ort.Output(context, 0, y_shape);
  InParallel(ort, context, call.Pixels(), [&](size_t pixel) {
    if (spec_.kind == PoolKind::kNormalise) {
      NormalisePixel(call, pixel, y);
    } else {
      PoolPixel(call, pixel, y);
    }
  });
}

}  // namespace deftonnx
