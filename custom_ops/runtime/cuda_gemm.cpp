#include "cuda_gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "error.h"
#include "kernel_cache.h"
#include "kernel_choice.h"

namespace deftonnx {
namespace {

// Collects a kernel's parameters in order; holds copies, since the launch reads them by address.
class Parameters {
 public:
  template <class T>
  void Add(const T& value) {
    static_assert(sizeof(T) <= sizeof(Slot));
    Slot& slot = slots_[count_];
    std::memcpy(&slot, &value, sizeof value);
    pointers_[count_++] = &slot;
  }
  void AddMatrix(const TensorMap& map, int64_t rows, int64_t columns, int64_t stride) {
    Add(map);
    Add(static_cast<int32_t>(rows));
    Add(static_cast<int32_t>(columns));
    Add(stride);
    Add(int64_t{1});
  }
  void** Pointers() { return pointers_; }

 private:
  struct alignas(64) Slot {
    unsigned char bytes[sizeof(TensorMap)];
  };
  static constexpr int kCapacity = 40;
  Slot slots_[kCapacity];
  void* pointers_[kCapacity];
  int count_ = 0;
};

struct Decoding {
  int32_t shift = 0;
  int32_t factor = 0;           // a bfloat16 power of two, twice
  float accumulator_scale = 1;  // what the decoded values are too small by
};

// See kernels/decode.py.
Decoding MakeDecoding(const GemmSpec& spec, const KernelImage& image) {
  Decoding decoding;
  if (image.operands != Operands::kDeft8) return decoding;
  const int bias = (1 << (spec.exponent_bits - 1)) - 1;
  if (spec.x_type == ElementType::kFloat16 && image.terms == 1) {
    decoding.shift = 5 - spec.exponent_bits;
    decoding.accumulator_scale = std::ldexp(1.0f, 15 - bias);
  } else {
    decoding.shift = 8 - spec.exponent_bits;
    const int32_t power = (127 - bias + 127) << 7;  // 2^(127 - bias)
    decoding.factor = power << 16 | power;
  }
  return decoding;
}

int32_t TypeCode(ElementType type) {
  return type == ElementType::kFloat ? 0 : type == ElementType::kFloat16 ? 1 : 2;  // as kernels/epilogue.py
}

}  // namespace

CudaGemm::CudaGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType weight,
                   ElementType y)
    : spec_(ReadGemmSpec(ort, info, x, weight, y)), driver_(CudaDriver::Get()) {
  const CUdevice device = driver_.CurrentDevice();
  multiprocessors_ = driver_.MultiprocessorCount(device);
  if (spec_.block > 0) CheckKeptOnDevice(ort, info);
  images_ = Candidates(spec_, driver_.ComputeCapability(device));
  for (const KernelImage* image : images_) kernels_.push_back({image, LoadKernel(driver_, *image, device)});
}

void CudaGemm::CheckKeptOnDevice(const Ort& ort, const OrtKernelInfo* info) const {
  Tensor kept;
  ort.ConstantInput(info, 4, &kept);
  std::vector<int32_t> blocks(kept.shape[0]);
  driver_.CopyToHost(blocks.data(), kept.data, blocks.size() * sizeof(int32_t));
  CheckKept(spec_, blocks.data(), blocks.size());
}

void CudaGemm::Compute(const Ort& ort, OrtKernelContext* context) const {
  const GemmShape shape = ComputeShape(spec_, ort, context);
  void* y = ort.Output(context, 0, shape.y);
  if (shape.M == 0) return;
  const KernelImage* image = Choose(images_, spec_, shape.M, multiprocessors_);
  const auto loaded =
      std::find_if(kernels_.begin(), kernels_.end(), [&](auto& k) { return k.image == image; });

  const int64_t tiles =
      (shape.M + image->block_m - 1) / image->block_m * ((spec_.N + image->block_n - 1) / image->block_n);
  if (shape.M > std::numeric_limits<int32_t>::max() - 1024 || tiles > std::numeric_limits<int32_t>::max()) {
    throw InvalidNode("DeftGemm node '" + spec_.node + "': X has too many rows");
  }
  const Tensor x = ort.Input(context, 0);
  const Tensor weight = ort.Input(context, 1);
  const size_t inputs = ort.InputCount(context);
  const void* kept = spec_.block > 0 ? ort.Input(context, 4).data : nullptr;
  const void* residual = inputs > 5 ? ort.Input(context, 5).data : nullptr;
  const Decoding decoding = MakeDecoding(spec_, *image);
  const Activation& activation = spec_.activation;

  Parameters parameters;
  if (image->loader == Loader::kTma) {
    const auto add = [&](const void* data, const Box& box, int64_t rows, int64_t columns, int64_t stride) {
      parameters.AddMatrix(driver_.EncodeMatrix(data, box.type, box.element_bytes, rows, columns, stride,
                                                box.rows, box.columns, box.swizzle),
                           rows, columns, stride);
    };
    add(x.data, image->x_box, shape.M, spec_.features, spec_.features);
    add(weight.data, image->w_box, spec_.N, spec_.padded_K, spec_.padded_K);
  } else {
    parameters.Add(x.data);
    parameters.Add(weight.data);
  }
  parameters.Add(ort.Input(context, 2).data);
  parameters.Add(ort.Input(context, 3).data);
  parameters.Add(kept);
  parameters.Add(residual);
  parameters.Add(y);
  for (int64_t size : {shape.M, spec_.N, spec_.K, spec_.features, spec_.padded_K}) {
    parameters.Add(static_cast<int32_t>(size));
  }
  parameters.Add(static_cast<int32_t>(spec_.block_shift));
  parameters.Add(decoding.shift);
  parameters.Add(decoding.factor);
  parameters.Add(decoding.accumulator_scale);
  parameters.Add(static_cast<int32_t>(activation.curve));
  parameters.Add(static_cast<int32_t>(activation.gated));
  for (float value : {activation.slope, activation.offset, activation.low, activation.high})
    parameters.Add(value);
  parameters.Add(TypeCode(spec_.y_type));
  parameters.Add(static_cast<void*>(nullptr));  // Triton's global scratch and profiling scratch, both unused
  parameters.Add(static_cast<void*>(nullptr));
  driver_.Launch(loaded->kernel, static_cast<unsigned>(tiles), image->threads, image->shared_bytes,
                 ort.ComputeStream(context), parameters.Pointers());
}

}  // namespace deftonnx
