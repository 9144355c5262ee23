#include "cuda_attention.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int64_t kVector = 8;  // elements of 16 bytes
constexpr float kLog2E = 1.44269504f;
constexpr int kStartsEarly = 90;  // compute capability

// AttentionParameters of the kernel.
struct Parameters {
  const void* x;
  const void* bias;
  void* y;
  int64_t bias_batch, bias_head, bias_row;
  int32_t length, heads, head_size, tiles;
  int32_t bias_pairs;
  float scale;
};

}  // namespace

CudaAttention::CudaAttention(const Ort& ort, const OrtKernelInfo* info, ElementType type, ElementType)
    : spec_(ReadAttentionSpec(ort, info, type)), driver_(CudaDriver::Get()) {
  const CUdevice device = driver_.CurrentDevice();
  const int capability = driver_.ComputeCapability(device);
  const int architecture = kAttentionImages.ArchitectureFor(capability);
  multiprocessors_ = driver_.MultiprocessorCount(device);
  starts_early_ = architecture >= kStartsEarly;
  if (spec_.head_size % kVector != 0) Refuse(spec_, "head_size is no multiple of 8");
  int least = std::numeric_limits<int>::max();  // head size of a kernel that has room for the node's
  for (const AttentionImage& row : kAttentionImages) {
    if (row.head_size >= spec_.head_size) least = std::min(least, row.head_size);
  }
  for (const AttentionImage& row : kAttentionImages) {
    if (row.image.architecture != architecture || row.type != type || row.head_size != least) continue;
    if (row.wgmma && architecture != capability) continue;
    if (!spec_.kernel.empty() && spec_.kernel != row.image.name) continue;
    kernels_.push_back({&row, LoadKernel(driver_, row.image, device)});
  }
  if (kernels_.empty()) Refuse(spec_, "no kernel " + spec_.kernel + " for this GPU, type and head_size");
  std::sort(kernels_.begin(), kernels_.end(), [](const Loaded& a, const Loaded& b) {
    return a.row->wgmma != b.row->wgmma ? a.row->wgmma : a.row->rows > b.row->rows;
  });
  while (kernels_.front().row->wgmma != kernels_.back().row->wgmma) kernels_.pop_back();
}

const CudaAttention::Loaded& CudaAttention::For(int64_t heads, int64_t length) const {
  for (const Loaded& loaded : kernels_) {
    const int64_t tiles = (length + loaded.row->rows - 1) / loaded.row->rows;
    if (heads * tiles >= multiprocessors_) return loaded;
  }
  return kernels_.back();
}

void CudaAttention::Compute(const Ort& ort, OrtKernelContext* context) const {
  const AttentionCall call = ReadAttentionCall(spec_, ort, context);
  const int64_t heads = call.batch * spec_.heads;
  if (heads == 0 || call.length == 0) return;
  const Loaded& chosen = For(heads, call.length);
  const int64_t tiles = (call.length + chosen.row->rows - 1) / chosen.row->rows;
  if (heads * tiles > std::numeric_limits<int32_t>::max()) Refuse(spec_, "X is too large");
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  const bool pairs = call.length % 2 == 0 && reinterpret_cast<uintptr_t>(call.bias) % 4 == 0;
  Parameters parameters{call.x,
                        call.bias,
                        call.y,
                        call.bias_batch,
                        call.bias_head,
                        call.bias_row,
                        narrow(call.length),
                        narrow(spec_.heads),
                        narrow(spec_.head_size),
                        narrow(tiles),
                        pairs,
                        spec_.scale * kLog2E};
  void* arguments[] = {&parameters};
  const KernelImage& image = chosen.row->image;
  driver_.Launch(chosen.kernel, static_cast<unsigned>(heads * tiles), 1, image.threads, image.shared_bytes,
                 ort.ComputeStream(context), arguments, starts_early_);
}

}  // namespace deftonnx
