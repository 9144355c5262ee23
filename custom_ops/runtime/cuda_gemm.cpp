#include "cuda_gemm.h"

#include "error.h"
#include "half_weight.h"

namespace deftonnx {
namespace {

size_t HalfWeightBytes(const GemmSpec& spec) {
  return BecomesHalf(spec) ? spec.N * (spec.padded_K * sizeof(uint16_t) + sizeof(float)) : 0;
}

// Writes the node's weight and scale as half into `memory`.
void MakeHalfWeight(GemmNode& node, void* memory) {
  const int64_t N = node.spec.N, row = node.spec.padded_K;
  std::vector<uint16_t> codes(N * row);
  std::vector<float> scale(N);
  const size_t code_bytes = codes.size() * sizeof(uint16_t), scale_bytes = N * sizeof(float);
  node.driver.CopyToHost(codes.data(), node.weight, code_bytes);
  node.driver.CopyToHost(scale.data(), node.scale, scale_bytes);
  ToHalf(codes.data(), scale.data(), N, row);
  void* new_scale = static_cast<char*>(memory) + code_bytes;
  node.driver.CopyToDevice(memory, codes.data(), code_bytes);
  node.driver.CopyToDevice(new_scale, scale.data(), scale_bytes);
  node.weight = memory;
  node.scale = new_scale;
}

GemmNode ReadNode(const Ort& ort, const OrtKernelInfo* info, const GemmSpec& spec, void* half_weight) {
  const CudaDriver& driver = CudaDriver::Get();
  const CUdevice device = driver.CurrentDevice();
  const auto constant = [&](size_t index) {
    Tensor tensor;
    ort.ConstantInput(info, index, &tensor);
    return tensor;
  };
  GemmNode node{AsServed(spec),
                driver,
                device,
                driver.ComputeCapability(device),
                driver.MultiprocessorCount(device),
                constant(1).data,
                constant(2).data,
                constant(3).data,
                nullptr,
                {}};
  if (half_weight != nullptr) MakeHalfWeight(node, half_weight);
  if (spec.has_zero) {
    uint32_t zero = 0;
    driver.CopyToHost(&zero, constant(5).data, ElementBytes(spec.y_type));
    CheckZero(spec, &zero);
  }
  if (spec.block == 0) return node;
  const Tensor kept = constant(4);
  node.kept = kept.data;
  node.kept_blocks.resize(kept.shape[0]);
  driver.CopyToHost(node.kept_blocks.data(), kept.data, node.kept_blocks.size() * sizeof(int32_t));
  CheckKept(spec, node.kept_blocks.data(), node.kept_blocks.size());
  return node;
}

}  // namespace

CudaGemm::CudaGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y)
    : CudaGemm(ort, info, ReadGemmSpec(ort, info, x, y)) {}

CudaGemm::CudaGemm(const Ort& ort, const OrtKernelInfo* info, const GemmSpec& spec)
    : allocator_(ort, info),
      half_weight_(allocator_, HalfWeightBytes(spec)),
      node_(ReadNode(ort, info, spec, half_weight_.data())),
      choice_(node_, MeasuredTimes::Load(node_.capability, node_.multiprocessors,
                                         [&](const std::string& message) { ort.Warn(info, message); })) {}

void CudaGemm::Compute(const Ort& ort, OrtKernelContext* context) const {
  const GemmInputs inputs = ReadInputs(node_.spec, ort, context);
  void* y = ort.Output(context, 0, inputs.y_shape);
  if (inputs.M == 0) return;
  if (inputs.M > kMostRows) throw InvalidNode("DeftGemm node '" + node_.spec.node + "': X has too many rows");
  const GemmKernel& kernel = choice_.For(inputs.M);
  const DeviceMemory scratch(allocator_, kernel.ScratchBytes(inputs.M));
  kernel.Launch({inputs.M, inputs.x, inputs.residual, y, scratch.data(), ort.ComputeStream(context)});
}

}  // namespace deftonnx
