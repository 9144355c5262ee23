#include "cuda_attention.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>

#include "aligned.h"

namespace deftonnx {
namespace {

constexpr int64_t kVector = 8;  // elements of 16 bytes
constexpr float kLog2E = 1.44269504f;

// attention::Parameters of kernels/attention.cuh.
struct Parameters {
  const void* x;
  const void* bias;
  const void* rotary;
  void* y;
  int64_t bias_batch, bias_head, bias_row, rotary_batch;
  int32_t length, heads, kv_heads, head_size, tiles;
  int32_t bias_pairs;
  int32_t causal;
  float scale;
};

}  // namespace

CudaAttention::CudaAttention(const Ort& ort, const OrtKernelInfo* info, ElementType type, ElementType)
    : spec_(ReadAttentionSpec(ort, info, type)), driver_(CudaDriver::Get()), ort_(ort) {
  const CUdevice device = driver_.CurrentDevice();
  const int capability = driver_.ComputeCapability(device);
  const int architecture = kAttentionImages.ArchitectureFor(capability);
  multiprocessors_ = driver_.MultiprocessorCount(device);
  starts_early_ = CanStartEarly(architecture);
  if (spec_.head_size % kVector != 0) Refuse(spec_, "head_size is no multiple of 8");
  if (spec_.has_rotary && spec_.head_size % (2 * kVector) != 0) {
    Refuse(spec_, "head_size is no multiple of 16, as rotary embeddings need it");
  }
  for (const AttentionImage& row : kAttentionImages) {
    if (row.image.architecture != architecture || row.type != type) continue;
    if (row.head_size < spec_.head_size || (row.wgmma && architecture != capability)) continue;
    if (!spec_.kernel.empty() && spec_.kernel != row.image.name) continue;
    kernels_.push_back({&row, &KernelOf(driver_, row.image, device)});
  }
  if (kernels_.empty()) {
    const std::string wanted = spec_.kernel.empty() ? "" : " '" + spec_.kernel + "'";
    Refuse(spec_, "no kernel" + wanted + " for compute capability " + std::to_string(capability) +
                      ", this type and a head_size of " + std::to_string(spec_.head_size));
  }
  // best first: for Hopper, of little room to spare, of many rows
  const auto rank = [](const Candidate& candidate) {
    return std::make_tuple(!candidate.row->wgmma, candidate.row->head_size, -candidate.row->rows);
  };
  std::sort(kernels_.begin(), kernels_.end(),
            [&](const Candidate& a, const Candidate& b) { return rank(a) < rank(b); });
  const AttentionImage& best = *kernels_.front().row;
  const auto differs = [&](const Candidate& candidate) {
    return candidate.row->wgmma != best.wgmma || candidate.row->head_size != best.head_size;
  };
  kernels_.erase(std::remove_if(kernels_.begin(), kernels_.end(), differs), kernels_.end());
  scratch_ = ort.DeviceAllocator(info);  // last: nobody releases it if this throws
}

CudaAttention::~CudaAttention() { ort_.Release(scratch_); }

const CudaAttention::Candidate& CudaAttention::For(int64_t heads, int64_t length) const {
  for (const Candidate& candidate : kernels_) {
    const int64_t tiles = (length + candidate.row->rows - 1) / candidate.row->rows;
    if (heads * tiles >= multiprocessors_) return candidate;
  }
  return kernels_.back();
}

void CudaAttention::Compute(const Ort& ort, OrtKernelContext* context) const {
  const AttentionCall call = ReadAttentionCall(spec_, ort, context);
  const int64_t heads = call.batch * spec_.heads;
  if (heads == 0 || call.length == 0) return;
  const Candidate& chosen = For(heads, call.length);
  const int64_t tiles = (call.length + chosen.row->rows - 1) / chosen.row->rows;
  if (heads * tiles > std::numeric_limits<int32_t>::max()) Refuse(spec_, "X is too large");
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  const Place place{driver_, scratch_, ort.ComputeStream(context)};
  const int64_t rows = call.batch * call.length, row = spec_.head_size * ElementBytes(spec_.type);
  const AlignedInput x(place, call.x, rows * (spec_.heads + 2 * spec_.kv_heads) * row);
  const AlignedInput rotary(place, call.rotary, (call.rotary_batch == 0 ? call.length : rows) * row);
  const AlignedOutput y(place, call.y, rows * spec_.heads * row);
  const bool pairs = call.length % 2 == 0 && reinterpret_cast<uintptr_t>(call.bias) % 4 == 0;
  Parameters parameters{x.data(),
                        call.bias,
                        rotary.data(),
                        y.data(),
                        call.bias_batch,
                        call.bias_head,
                        call.bias_row,
                        call.rotary_batch,
                        narrow(call.length),
                        narrow(spec_.heads),
                        narrow(spec_.kv_heads),
                        narrow(spec_.head_size),
                        narrow(tiles),
                        pairs,
                        spec_.causal,
                        spec_.scale * kLog2E};
  void* arguments[] = {&parameters};
  const KernelImage& image = chosen.row->image;
  const int shared_bytes = image.shared_bytes - (call.rotary == nullptr ? chosen.row->turn_bytes : 0);
  driver_.Launch(chosen.kernel->Get(), static_cast<unsigned>(heads * tiles), 1, image.threads, shared_bytes,
                 place.stream, arguments, starts_early_);
  y.Store();
}

}  // namespace deftonnx
