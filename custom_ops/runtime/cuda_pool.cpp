#include "cuda_pool.h"

#include <algorithm>
#include <limits>
#include <string>

#include "aligned.h"
#include "error.h"

namespace deftonnx {
namespace {

constexpr int64_t kMostElements = std::numeric_limits<int32_t>::max();  // pixels of X or Y, and channels
constexpr int kSlices = 8;                                              // threads that share a window
constexpr int64_t kShared = 16;  // taps of a window that is worth sharing

// PoolParameters of the kernel.
struct PoolParameters {
  const void* x;
  void* y;
  int64_t items;
  int32_t vectors, slices;
  int32_t in_rows, in_columns, out_rows, out_columns;
  int32_t kernel_rows, kernel_columns, row_stride, column_stride, row_start, column_start;
  int32_t row_dilation, column_dilation;
  int32_t counted_rows, counted_columns;
  int32_t reach;
  float alpha, beta, bias;
};

}  // namespace

CudaPool::CudaPool(const Ort& ort, const OrtKernelInfo* info, ElementType type, ElementType)
    : spec_(ReadPoolSpec(ort, info, type)), driver_(CudaDriver::Get()) {
  const CUdevice device = driver_.CurrentDevice();
  const int architecture = kPoolImages.ArchitectureFor(driver_.ComputeCapability(device));
  const PoolKind kind = spec_.kind == PoolKind::kAveragePadded ? PoolKind::kAverage : spec_.kind;
  for (const PoolImage& row : kPoolImages) {
    if (row.image.architecture != architecture || row.type != type || row.kind != kind) continue;
    kernels_.push_back({&row, &KernelOf(driver_, row.image, device)});
  }
  if (kernels_.empty()) Refuse(spec_, "no kernel for this GPU");
  std::sort(kernels_.begin(), kernels_.end(),
            [](const Candidate& a, const Candidate& b) { return a.row->width > b.row->width; });
}

void CudaPool::Compute(const Ort& ort, OrtKernelContext* context) const {
  std::vector<int64_t> y_shape;
  const PoolCall call = ReadPoolCall(spec_, ort, context, &y_shape);
  void* y = ort.Output(context, 0, y_shape);
  if (call.Pixels() == 0 || call.channels == 0) return;
  if (std::max(call.batch * call.in_rows * call.in_columns, call.Pixels()) > kMostElements) {
    Refuse(spec_, "X has too many pixels");
  }
  const bool normalises = spec_.kind == PoolKind::kNormalise;
  const bool aligned = IsAligned(call.x) && IsAligned(y);
  const Candidate& chosen = *std::find_if(kernels_.begin(), kernels_.end(), [&](const Candidate& candidate) {
    const int width = candidate.row->width;
    const bool reaches = !normalises || (call.Taps() == 1 && spec_.size / 2 <= width);
    return width == 1 || (call.channels % width == 0 && reaches && aligned);
  });
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  const bool padded = spec_.kind == PoolKind::kAveragePadded;
  const int64_t vectors = call.channels / chosen.row->width;
  const int slices = !normalises && call.Taps() >= kShared ? kSlices : 1;
  const PoolParameters parameters{call.x,
                                  y,
                                  call.Pixels() * vectors,
                                  narrow(vectors),
                                  slices,
                                  narrow(call.in_rows),
                                  narrow(call.in_columns),
                                  narrow(call.out_rows),
                                  narrow(call.out_columns),
                                  narrow(call.rows.kernel),
                                  narrow(call.columns.kernel),
                                  narrow(call.rows.stride),
                                  narrow(call.columns.stride),
                                  narrow(-call.rows.pad_begin),
                                  narrow(-call.columns.pad_begin),
                                  narrow(call.rows.dilation),
                                  narrow(call.columns.dilation),
                                  padded ? narrow(call.in_rows + call.rows.pad_end) : 0,
                                  padded ? narrow(call.in_columns + call.columns.pad_end) : 0,
                                  narrow(spec_.size / 2),
                                  spec_.alpha / static_cast<float>(spec_.size * call.Taps()),
                                  spec_.beta,
                                  spec_.bias};
  const int threads = chosen.row->image.threads;
  const int64_t blocks = (parameters.items + threads / slices - 1) / (threads / slices);
  if (blocks > std::numeric_limits<int32_t>::max()) Refuse(spec_, "Y is too large");
  void* arguments[] = {const_cast<PoolParameters*>(&parameters)};
  driver_.Launch(chosen.kernel->Get(), static_cast<unsigned>(blocks), 1, threads, 0,
                 ort.ComputeStream(context), arguments, CanStartEarly(chosen.row->image.architecture));
}

}  // namespace deftonnx
