#include "cuda_gemm.h"

#include "error.h"
#include "float16_weight.h"
#include "fp8_rounding.h"

namespace deftonnx {
namespace {

// Changes the codes and the scale of the node's weight, in buffers of their own.
template <class Code, class Change>
void Rewrite(GemmNode& node, DeviceBuffer& new_codes, DeviceBuffer& new_scale, Change change) {
  std::vector<Code> codes(node.spec.N * node.spec.padded_K);
  std::vector<float> scale(node.spec.N);
  node.driver.CopyToHost(codes.data(), node.weight, codes.size() * sizeof(Code));
  node.driver.CopyToHost(scale.data(), node.scale, scale.size() * sizeof(float));
  change(codes.data(), scale.data());
  new_codes = DeviceBuffer(node.driver, codes);
  new_scale = DeviceBuffer(node.driver, scale);
  node.weight = new_codes.data();
  node.scale = new_scale.data();
}

void CheckCodes(const GemmNode& node) {
  std::vector<uint8_t> codes(node.spec.N * node.spec.padded_K);
  node.driver.CopyToHost(codes.data(), node.weight, codes.size());
  CheckFp8Codes(node.spec, codes.data(), codes.size());
}

void WriteAnew(GemmNode& node, const GemmSpec& given, DeviceBuffer& new_codes, DeviceBuffer& new_scale) {
  const int64_t N = given.N, row = given.padded_K;
  if (given.format == Format::kDeft8) {
    Rewrite<uint8_t>(node, new_codes, new_scale, [&](uint8_t* codes, float* scale) {
      ToDeft8With5(codes, scale, N, row, given.exponent_bits);
    });
  } else {
    Rewrite<uint16_t>(node, new_codes, new_scale,
                      [&](uint16_t* codes, float* scale) { ToHalf(codes, scale, N, row); });
  }
}

GemmNode ReadNode(const Ort& ort, const OrtKernelInfo* info, const GemmSpec& spec, DeviceBuffer& new_codes,
                  DeviceBuffer& new_scale) {
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
  if (IsWrittenAnew(spec)) WriteAnew(node, spec, new_codes, new_scale);
  if (spec.rounds_x) CheckCodes(node);
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
    : ort_(ort),
      node_(ReadNode(ort, info, ReadGemmSpec(ort, info, x, y), new_codes_, new_scale_)),
      choice_(node_, MeasuredTimes::Load(node_.capability, node_.multiprocessors,
                                         [&](const std::string& message) { ort.Warn(info, message); })),
      scratch_(ort.DeviceAllocator(info)) {}

CudaGemm::~CudaGemm() { ort_.Release(scratch_); }

void CudaGemm::Compute(const Ort& ort, OrtKernelContext* context) const {
  const GemmInputs inputs = ReadInputs(node_.spec, ort, context);
  void* y = ort.Output(context, 0, inputs.y_shape);
  if (inputs.M == 0) return;
  if (inputs.M > kMostRows) throw InvalidNode("DeftGemm node '" + node_.spec.node + "': X has too many rows");
  const GemmKernel& kernel = choice_.For(inputs.M);
  const Scratch scratch(scratch_, kernel.ScratchBytes(inputs.M));
  kernel.Launch({inputs.M, inputs.x, inputs.residual, y, scratch.data(), ort.ComputeStream(context)});
}

}  // namespace deftonnx
