#include "channels_last_op.h"

#include <cstring>
#include <limits>
#include <string>

#include "aligned.h"
#include "cpu_elements.h"
#include "cuda_driver.h"
#include "custom_operator.h"
#include "kernel_cache.h"
#include "operator_node.h"

namespace deftonnx {
namespace {

struct Spec : OperatorNode {
  int64_t image_axes;
  ElementType type;

  int64_t ElementSize() const { return type == ElementType::kFloat ? 4 : 2; }
};

Spec ReadSpec(const Ort& ort, const OrtKernelInfo* info, ElementType type) {
  Spec spec{};
  spec.op = "DeftChannelsLast";
  spec.type = type;
  const AttributeReader reader(ort, info, spec);
  spec.image_axes = reader.Size("image_axes");
  if (spec.image_axes > 2)
    Refuse(spec, "image_axes = " + std::to_string(spec.image_axes) + ", known are 1 and 2");
  reader.CheckOutputType(type, type, "X");
  return spec;
}

// One run: X is (batch, channels, pixels), Y (batch, pixels, channels).
struct Call {
  int64_t batch, channels, pixels;
  const void* x;
  void* y;
};

Call ReadCall(const Spec& spec, const Ort& ort, OrtKernelContext* context) {
  const Tensor x = ort.Input(context, 0);
  if (x.shape.size() != static_cast<size_t>(spec.image_axes) + 2) {
    Refuse(spec, "X has shape " + ShapeText(x.shape) + ", expected " + std::to_string(spec.image_axes + 2) +
                     " axes");
  }
  Call call{x.shape[0], x.shape[1], 1, x.data, nullptr};
  std::vector<int64_t> y_shape = {call.batch};
  for (size_t axis = 2; axis < x.shape.size(); ++axis) {
    call.pixels *= x.shape[axis];
    y_shape.push_back(x.shape[axis]);
  }
  y_shape.push_back(call.channels);
  call.y = ort.Output(context, 0, y_shape);
  return call;
}

class CpuChannelsLast {
 public:
  CpuChannelsLast(const Ort& ort, const OrtKernelInfo* info, ElementType type, ElementType)
      : spec_(ReadSpec(ort, info, type)) {}

  void Compute(const Ort& ort, OrtKernelContext* context) const {
    const Call call = ReadCall(spec_, ort, context);
    const int64_t size = spec_.ElementSize(), pixel_bytes = call.channels * size;
    InParallel(ort, context, call.batch, [&](size_t image) {
      const char* x = static_cast<const char*>(call.x) + image * call.channels * call.pixels * size;
      char* y = static_cast<char*>(call.y) + image * call.pixels * pixel_bytes;
      for (int64_t channel = 0; channel < call.channels; ++channel) {
        for (int64_t pixel = 0; pixel < call.pixels; ++pixel, x += size) {
          std::memcpy(y + pixel * pixel_bytes + channel * size, x, size);
        }
      }
    });
  }

 private:
  Spec spec_;
};

constexpr int64_t kWidth = 8;  // channels of a thread

// ChannelsLastParameters of the kernel.
struct Parameters {
  const void* x;
  void* y;
  uint32_t items, groups, pixels, channels;
};

class CudaChannelsLast {
 public:
  CudaChannelsLast(const Ort& ort, const OrtKernelInfo* info, ElementType type, ElementType)
      : spec_(ReadSpec(ort, info, type)), driver_(CudaDriver::Get()), ort_(ort) {
    const CUdevice device = driver_.CurrentDevice();
    const int architecture = kChannelsLastImages.ArchitectureFor(driver_.ComputeCapability(device));
    for (const ChannelsLastImage& row : kChannelsLastImages) {
      if (row.image.architecture == architecture && row.element_size == spec_.ElementSize())
        image_ = &row.image;
    }
    if (image_ == nullptr) Refuse(spec_, "no kernel for this GPU");
    kernel_ = &KernelOf(driver_, *image_, device);
    scratch_ = ort.DeviceAllocator(info);  // last: nobody releases it if this throws
  }
  CudaChannelsLast(const CudaChannelsLast&) = delete;
  ~CudaChannelsLast() { ort_.Release(scratch_); }

  // Launches on ONNX Runtime's stream, without synchronisation. Safe in several threads at once.
  void Compute(const Ort& ort, OrtKernelContext* context) const {
    const Call call = ReadCall(spec_, ort, context);
    const int64_t groups = (call.channels + kWidth - 1) / kWidth, items = call.batch * groups * call.pixels;
    if (items == 0) return;
    if (items > std::numeric_limits<int32_t>::max()) Refuse(spec_, "X has too many pixels");
    const auto narrow = [](int64_t value) { return static_cast<uint32_t>(value); };
    const Place place{driver_, scratch_, ort.ComputeStream(context)};
    const AlignedOutput y(place, call.y, call.batch * call.channels * call.pixels * spec_.ElementSize());
    Parameters parameters{
        call.x, y.data(), narrow(items), narrow(groups), narrow(call.pixels), narrow(call.channels)};
    const unsigned threads = image_->threads;
    void* arguments[] = {&parameters};
    driver_.Launch(kernel_->Get(), (narrow(items) + threads - 1) / threads, 1, threads, 0, place.stream,
                   arguments, CanStartEarly(image_->architecture));
    y.Store();
  }

 private:
  Spec spec_;
  const CudaDriver& driver_;
  const KernelImage* image_ = nullptr;
  LazyKernel* kernel_ = nullptr;
  Ort ort_;
  OrtAllocator* scratch_ = nullptr;
};

}  // namespace

std::vector<OrtCustomOp*> ChannelsLastOps() {
  static std::vector<TypedOp> ops = [] {
    std::vector<TypedOp> all;
    for (ElementType type : {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}) {
      all.push_back(MakeOp<CudaChannelsLast>("DeftChannelsLast", type, type, CudaProvider));
      all.push_back(MakeOp<CpuChannelsLast>("DeftChannelsLast", type, type, CpuProvider));
    }
    return all;
  }();
  std::vector<OrtCustomOp*> pointers;
  for (TypedOp& op : ops) pointers.push_back(&op);
  return pointers;
}

}  // namespace deftonnx
