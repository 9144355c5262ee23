#include "cuda_conv.h"

#include <algorithm>
#include <map>
#include <string>

#include "aligned.h"
#include "cudnn.h"
#include "error.h"

namespace deftonnx {
namespace {

constexpr void (*kFamilies[])(const ConvNode&, ConvKernels&) = {HopperConvKernels,      ResidentConvKernels,
                                                                FewChannelsConvKernels, DepthwiseConvKernels,
                                                                DirectConvKernels,      CudnnConvKernels};
constexpr double kClose = 3;  // estimates within this factor of the least are measured
constexpr size_t kMostMeasured = 16;
constexpr int kRepeats = 3;
// Launches timed together, of kernels that take less than kShort milliseconds: those that start before the
// one ahead of them has ended show it between launches only.
constexpr int kTogether = 4;
constexpr float kShort = 0.1f;
constexpr int64_t kMostPixels = std::numeric_limits<int32_t>::max() - 1024;

void SetKnownSize(ConvNode& node, const std::vector<int64_t>& x) {
  if (x.size() != static_cast<size_t>(node.spec.image_axes) + 2) return;
  const int64_t rows = node.spec.image_axes == 1 ? 1 : x[1], columns = x[x.size() - 2];
  if (rows > 0 && columns > 0) node.known_rows = rows, node.known_columns = columns;
}

ConvNode ReadNode(const Ort& ort, const OrtKernelInfo* info, const ConvSpec& spec) {
  const CudaDriver& driver = CudaDriver::Get();
  const CUdevice device = driver.CurrentDevice();
  const auto constant = [&](size_t index) {
    Tensor tensor;
    ort.ConstantInput(info, index, &tensor);
    return tensor.data;
  };
  ConvNode node{spec,
                driver,
                device,
                driver.ComputeCapability(device),
                driver.MultiprocessorCount(device),
                constant(kInputWeight),
                constant(kInputScale),
                {},
                constant(kInputBias),
                {}};
  node.session = ort.SessionOf(info);
  SetKnownSize(node, ort.InputShape(info, kInputX));
  node.scale.resize(spec.N);
  driver.CopyToHost(node.scale.data(), node.packed_scale, spec.N * sizeof(float));
  if (spec.has_zero) {
    uint32_t zero = 0;
    driver.CopyToHost(&zero, constant(kInputResidual), ElementBytes(spec.y_type));
    CheckZero(spec, &zero);
  }
  if (spec.block == 0) return node;
  node.kept.resize(spec.group * spec.KeptBlocks());
  driver.CopyToHost(node.kept.data(), constant(kInputKept), node.kept.size() * sizeof(int32_t));
  CheckKept(spec, node.kept.data(), node.kept.size());
  return node;
}

}  // namespace

ConvKernels ConvKernelsFor(const ConvNode& node) {
  ConvKernels kernels;
  for (auto family : kFamilies) family(node, kernels);
  return kernels;
}

std::vector<size_t> MeasuredAmong(const std::vector<double>& times) {
  std::vector<size_t> order;
  for (size_t i = 0; i < times.size(); ++i) {
    if (times[i] != kConvRefused) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return times[a] < times[b]; });
  const auto far = [&](size_t i) { return times[i] > kClose * times[order[0]]; };
  order.erase(std::find_if(order.begin(), order.end(), far), order.end());
  if (order.size() > kMostMeasured) order.resize(kMostMeasured);
  return order;
}

CudaConv::CudaConv(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y)
    : ort_(ort), node_(ReadNode(ort, info, ReadConvSpec(ort, info, x, y))) {
  kernels_ = ConvKernelsFor(node_);
  node_.unpacked = {};
  node_.rounded = {};
  if (kernels_.empty()) {
    const std::string wanted = node_.spec.kernel.empty() ? "" : " '" + node_.spec.kernel + "'";
    Refuse(node_.spec, "no kernel" + wanted + " for compute capability " + std::to_string(node_.capability) +
                           ", these types and this shape");
  }
  scratch_ = ort.DeviceAllocator(info);  // last: nobody releases it if this throws
}

CudaConv::~CudaConv() {
  while (!kernels_.empty()) kernels_.pop_back();  // cuDNN's come last, and ask those before them
  ort_.Release(scratch_);
}

size_t CudaConv::Measure(ConvCall call, const std::vector<size_t>& candidates, size_t guess) const {
  // one measurement for all sessions of the process, so that equal nodes compute the same bits
  static std::mutex mutex;
  static auto* measured = new std::map<std::string, size_t>;
  std::lock_guard<std::mutex> lock(mutex);
  const bool scaled = node_.weight16 != nullptr && node_.weight16->scaled;
  const std::string key =
      std::to_string(node_.device) + (scaled ? " scaled " : " ") + TimingKey(node_.spec, call.shape);
  const auto known = measured->find(key);
  const auto served = [&](size_t i) {
    return std::find(candidates.begin(), candidates.end(), i) != candidates.end();
  };
  if (known != measured->end() && served(known->second)) return known->second;
  float least = std::numeric_limits<float>::infinity();
  for (size_t i : candidates) {
    const Scratch scratch(scratch_, kernels_[i]->ScratchBytes(call.shape));
    call.scratch = scratch.data();
    const auto milliseconds = [&](int count) {
      const auto launch = [&] {
        for (int launched = 0; launched < count; ++launched) kernels_[i]->Launch(call);
      };
      return node_.driver.Milliseconds(call.stream, launch) / count;
    };
    try {
      milliseconds(1);  // machine code is loaded
      const int count = milliseconds(1) < kShort ? kTogether : 1;
      for (int repeat = 0; repeat < kRepeats; ++repeat) {
        const float time = milliseconds(count);
        if (time < least) least = time, guess = i;
      }
    } catch (const cudnn::Error&) {
      // made, but not to be run: another one serves
    }
  }
  (*measured)[key] = guess;
  return guess;
}

ConvKernel& CudaConv::Choose(const ConvCall& call) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [known, kernel] : chosen_) {
    if (known == call.shape) return *kernel;
  }
  // while a graph is captured nothing can be made or measured: the least estimate of what is ready serves,
  // and a later run decides
  const bool capturing = node_.driver.IsCapturing(call.stream);
  std::vector<double> times;
  for (const auto& kernel : kernels_) {
    const bool serves = !capturing || kernel->IsReady(call.shape);
    times.push_back(serves ? kernel->Nanoseconds(call.shape) : kConvRefused);
  }
  const std::vector<size_t> close = MeasuredAmong(times);
  if (close.empty()) {
    Refuse(node_.spec, "no kernel '" + node_.spec.kernel + "' for images of this size" +
                           (capturing ? " while a CUDA graph is captured; run it once before" : ""));
  }
  const size_t guess = close[0];
  if (capturing) return *kernels_[guess];
  ConvKernel* best = kernels_[close.size() > 1 ? Measure(call, close, guess) : guess].get();
  chosen_.push_back({call.shape, best});
  return *best;
}

void CudaConv::Compute(const Ort& ort, OrtKernelContext* context) {
  const ConvInputs inputs = ReadInputs(node_.spec, ort, context);
  void* y = ort.Output(context, 0, inputs.y_shape);
  if (inputs.shape.Pixels() == 0) return;
  const ConvSpec& spec = node_.spec;
  const int64_t x_pixels = inputs.shape.batch * inputs.shape.in_rows * inputs.shape.in_columns;
  if (inputs.shape.Pixels() > kMostPixels) Refuse(spec, "Y has too many pixels");
  if (x_pixels > kMostPixels) Refuse(spec, "X has too many pixels");
  const Place place{node_.driver, scratch_, ort.ComputeStream(context)};
  size_t y_bytes = ElementBytes(spec.y_type);
  for (int64_t size : inputs.y_shape) y_bytes *= size;
  const AlignedInput x(place, inputs.x, x_pixels * spec.channels * ElementBytes(spec.x_type));
  const AlignedInput residual(place, inputs.residual, y_bytes);
  const AlignedOutput aligned_y(place, y, y_bytes);
  ConvCall call{inputs.shape, x.data(), residual.data(), aligned_y.data(), nullptr, place.stream};
  ConvKernel& kernel = Choose(call);
  const Scratch scratch(scratch_, kernel.ScratchBytes(inputs.shape));
  call.scratch = scratch.data();
  kernel.Launch(call);
  aligned_y.Store();
}

}  // namespace deftonnx
