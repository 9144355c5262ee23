#include "cuda_conv.h"

#include "error.h"
#include "weight_decoder.h"

namespace deftonnx {
namespace {

constexpr void (*kFamilies[])(const ConvNode&, ConvKernels&) = {CudnnConvKernels, HopperConvKernels,
                                                                DirectConvKernels};
constexpr int64_t kMostPixels = std::numeric_limits<int32_t>::max() - 1024;

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
                {},
                {},
                constant(kInputBias),
                {}};
  const WeightDecoder decoder(spec);
  std::vector<char> codes(decoder.Bytes());
  driver.CopyToHost(codes.data(), constant(kInputWeight), codes.size());
  node.scale.resize(spec.N);
  driver.CopyToHost(node.scale.data(), constant(kInputScale), spec.N * sizeof(float));
  node.weight.reserve(spec.N * spec.K);
  for (int64_t n = 0; n < spec.N; ++n) {
    for (int64_t k = 0; k < spec.K; ++k) node.weight.push_back(decoder.Value(codes.data(), n, k));
  }
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

CudaConv::CudaConv(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y)
    : ort_(ort),
      node_(ReadNode(ort, info, ReadConvSpec(ort, info, x, y))),
      scratch_(ort.DeviceAllocator(info)) {
  for (auto family : kFamilies) family(node_, kernels_);
  node_.weight = {};
  if (!kernels_.empty()) return;
  ort_.Release(scratch_);
  const std::string wanted = node_.spec.kernel.empty() ? "" : " '" + node_.spec.kernel + "'";
  Refuse(node_.spec, "no kernel" + wanted + " for compute capability " + std::to_string(node_.capability) +
                         ", these types and this shape");
}

CudaConv::~CudaConv() { ort_.Release(scratch_); }

ConvKernel& CudaConv::Choose(const ConvShape& shape) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [known, kernel] : chosen_) {
    if (known == shape) return *kernel;
  }
  ConvKernel* best = nullptr;
  double least = kConvRefused;
  for (const auto& kernel : kernels_) {
    const double time = kernel->Nanoseconds(shape);
    if (time < least) least = time, best = kernel.get();
  }
  if (best == nullptr) Refuse(node_.spec, "no kernel '" + node_.spec.kernel + "' for images of this size");
  chosen_.push_back({shape, best});
  return *best;
}

void CudaConv::Compute(const Ort& ort, OrtKernelContext* context) {
  const ConvInputs inputs = ReadInputs(node_.spec, ort, context);
  void* y = ort.Output(context, 0, inputs.y_shape);
  if (inputs.shape.Pixels() == 0) return;
  if (inputs.shape.Pixels() > kMostPixels) Refuse(node_.spec, "Y has too many pixels");
  ConvKernel& kernel = Choose(inputs.shape);
  const Scratch scratch(scratch_, kernel.ScratchBytes(inputs.shape));
  kernel.Launch({inputs.shape, inputs.x, inputs.residual, y, scratch.data(), ort.ComputeStream(context)});
}

}  // namespace deftonnx
