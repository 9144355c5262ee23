#include "mlp_layers.h"

#include <algorithm>
#include <utility>

#include "error.h"
#include "gemm_arguments.h"

namespace deftonnx {
namespace {

size_t RoundUp(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

MlpLayers::Layer::Layer(const Ort& ort, const OrtKernelInfo* info, const GemmSpec& spec, size_t input)
    : node(ReadGemmNode(ort, info, spec, new_weight, input)),
      choice(node, MeasuredTimes::Load(node.capability, node.multiprocessors,
                                       [&](const std::string& message) { ort.Warn(info, message); })) {}

MlpLayers::MlpLayers(const Ort& ort, const OrtKernelInfo* info, const MlpSpec& spec,
                     const MlpRounding& rounding)
    : ort_(ort), rounding_(rounding), rounds_(spec.x_type != spec.type) {
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    layers_.emplace_back(ort, info, spec.layers[i], MlpWeightInput(i));
  }
  scratch_ = ort.DeviceAllocator(info);
}

MlpLayers::~MlpLayers() { ort_.Release(scratch_); }

double MlpLayers::Nanoseconds(int64_t M) const {
  constexpr double kLaunch = 3000;    // of a layer at least: less in a CUDA graph, but more without
  constexpr double kRounding = 2000;  // of X in float32; many rows are not what this is close for
  double total = rounds_ ? kRounding : 0;
  for (const Layer& layer : layers_) {
    total += std::max(kLaunch, layer.choice.Nanoseconds(layer.choice.For(M), M));
  }
  return total;
}

size_t MlpLayers::RoundedBytes(int64_t M) const {
  return rounds_ ? RoundUp(M * layers_.front().node.spec.K * sizeof(uint16_t)) : 0;
}

void MlpLayers::Round(int64_t M, const void* x, void* rounded, CUstream stream) const {
  const GemmNode& first = layers_.front().node;
  const int64_t count = M * first.spec.K;
  const int64_t most = int64_t{8} * first.multiprocessors;
  const int64_t blocks = std::min(CeilDivide(count, rounding_.threads), most);
  Arguments arguments;
  arguments.Add(x);
  arguments.Add(rounded);
  arguments.Add(count);
  first.driver.Launch(rounding_.kernel->Get(), static_cast<unsigned>(blocks), 1, rounding_.threads, 0, stream,
                      arguments.Pointers(), rounding_.starts_early);
}

void MlpLayers::Launch(int64_t M, const void* x, void* y, CUstream stream) const {
  if (M > kMostRows)
    throw InvalidNode("DeftMlp node '" + layers_.front().node.spec.node + "': X has too many rows");
  size_t between = 0, of_kernels = 0;
  for (const Layer& layer : layers_) {
    between = std::max(between, RoundUp(M * layer.node.spec.N * sizeof(uint16_t)));
    of_kernels = std::max(of_kernels, layer.choice.For(M).ScratchBytes(M));
  }
  const size_t rounded = RoundedBytes(M);
  const Scratch scratch(scratch_, rounded + 2 * between + of_kernels);
  auto* before = static_cast<char*>(scratch.data()) + rounded;
  char* behind = before + between;
  void* of_kernel = of_kernels == 0 ? nullptr : behind + between;
  if (rounds_) {
    Round(M, x, scratch.data(), stream);
    x = scratch.data();
  }
  for (const Layer& layer : layers_) {
    void* made = &layer == &layers_.back() ? y : behind;
    layer.choice.For(M).Launch({M, x, nullptr, made, of_kernel, stream});
    std::swap(before, behind);
    x = before;
  }
}

}  // namespace deftonnx
