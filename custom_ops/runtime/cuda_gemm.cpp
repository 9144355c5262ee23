#include "cuda_gemm.h"

#include <tuple>
#include <utility>

#include "aligned.h"
#include "error.h"
#include "float16_weight.h"
#include "fp8_rounding.h"
#include "shared_values.h"

namespace deftonnx {
namespace {

// What `change` makes of the codes and the scale of the node's weight; nodes that read the same ones share
// it.
template <class Code, class Change>
std::shared_ptr<const NewWeight> Rewritten(const GemmNode& node, const GemmSpec& given, Change change) {
  using Key = std::tuple<CUdevice, const void*, const void*, uint64_t, int>;
  static auto* weights = new SharedValues<Key, NewWeight>;

  std::vector<Code> codes(given.N * given.padded_K);
  std::vector<float> scale(given.N);
  node.driver.CopyToHost(codes.data(), node.weight, codes.size() * sizeof(Code));
  node.driver.CopyToHost(scale.data(), node.scale, scale.size() * sizeof(float));
  const uint64_t of_codes = Digest(codes.data(), codes.size() * sizeof(Code));
  const uint64_t digest = Digest(scale.data(), scale.size() * sizeof(float), of_codes);
  return weights->Get({node.device, node.weight, node.scale, digest, given.exponent_bits}, [&] {
    change(codes.data(), scale.data());
    auto [codes_there, scale_there] = DeviceBuffer::Together(node.driver, codes, scale);
    return NewWeight{std::move(codes_there), std::move(scale_there)};
  });
}

void CheckCodes(const GemmNode& node) {
  std::vector<uint8_t> codes(node.spec.N * node.spec.padded_K);
  node.driver.CopyToHost(codes.data(), node.weight, codes.size());
  CheckFp8Codes(node.spec, codes.data(), codes.size());
}

std::shared_ptr<const NewWeight> WrittenAnew(const GemmNode& node, const GemmSpec& given) {
  const int64_t N = given.N, row = given.padded_K;
  if (given.format == Format::kDeft8) {
    return Rewritten<uint8_t>(node, given, [&](uint8_t* codes, float* scale) {
      ToDeft8With5(codes, scale, N, row, given.exponent_bits);
    });
  }
  return Rewritten<uint16_t>(node, given,
                             [&](uint16_t* codes, float* scale) { ToHalf(codes, scale, N, row); });
}

}  // namespace

GemmNode ReadGemmNode(const Ort& ort, const OrtKernelInfo* info, const GemmSpec& spec,
                      std::shared_ptr<const NewWeight>& new_weight, size_t first) {
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
                constant(first).data,
                constant(first + 1).data,
                constant(first + 2).data,
                nullptr,
                {}};
  if (IsWrittenAnew(spec)) {
    new_weight = WrittenAnew(node, spec);
    node.weight = new_weight->codes.data();
    node.scale = new_weight->scale.data();
  }
  if (spec.rounds_x) CheckCodes(node);
  if (spec.has_zero) {
    uint32_t zero = 0;
    driver.CopyToHost(&zero, constant(kInputResidual).data, ElementBytes(spec.y_type));
    CheckZero(spec, &zero);
  }
  if (spec.block == 0) return node;
  const Tensor kept = constant(kInputKept);
  node.kept = kept.data;
  node.kept_blocks.resize(kept.shape[0]);
  driver.CopyToHost(node.kept_blocks.data(), kept.data, node.kept_blocks.size() * sizeof(int32_t));
  CheckKept(spec, node.kept_blocks.data(), node.kept_blocks.size());
  return node;
}

CudaGemm::CudaGemm(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y)
    : ort_(ort),
      node_(ReadGemmNode(ort, info, ReadGemmSpec(ort, info, x, y), new_weight_)),
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
  const GemmSpec& spec = node_.spec;
  const Place place{node_.driver, scratch_, ort.ComputeStream(context)};
  const size_t y_bytes = inputs.M * spec.N * ElementBytes(spec.y_type);
  const AlignedInput x(place, inputs.x, inputs.M * spec.features * ElementBytes(spec.x_type));
  const AlignedInput residual(place, inputs.residual, y_bytes);
  const AlignedOutput aligned_y(place, y, y_bytes);
  kernel.Launch({inputs.M, x.data(), residual.data(), aligned_y.data(), scratch.data(), place.stream});
  aligned_y.Store();
}

}  // namespace deftonnx
