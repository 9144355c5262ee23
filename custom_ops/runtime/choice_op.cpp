#include "choice_op.h"

#include <cstring>
#include <exception>
#include <sstream>

#include "error.h"
#include "half_weight.h"
#include "kernel_choice.h"

namespace deftonnx {
namespace {

GemmNode ReadNode(const Ort& ort, const OrtKernelInfo* info) {
  const auto element = [&](const char* name) {
    return static_cast<ElementType>(ort.AttributeInt(info, name));
  };
  const GemmSpec spec =
      AsServed(ReadGemmAttributes(ort, info, element("x_type"), element("w_type"), element("output_type")));
  GemmNode node{spec,
                CudaDriver::Offline(),
                0,
                static_cast<int>(ort.AttributeInt(info, "capability")),
                static_cast<int>(ort.AttributeInt(info, "multiprocessors")),
                nullptr,
                nullptr,
                nullptr,
                nullptr,
                {}};
  Tensor kept;
  if (spec.block == 0 || ort.InputCount(info) < 2 || !ort.ConstantInput(info, 1, &kept)) return node;
  const auto* blocks = static_cast<const int32_t*>(kept.data);
  node.kept_blocks.assign(blocks, blocks + kept.shape.at(0));
  CheckKept(spec, blocks, node.kept_blocks.size());
  return node;
}

class ChoiceKernel {
 public:
  ChoiceKernel(const Ort& ort, const OrtKernelInfo* info)
      : ort_(ort),
        node_(ReadNode(ort, info)),
        choice_(node_, MeasuredTimes::Load(node_.capability, node_.multiprocessors,
                                           [&](const std::string& message) { ort.Warn(info, message); })) {}
  ChoiceKernel(const ChoiceKernel&) = delete;  // the choice refers to node_

  const Ort& ort() const { return ort_; }

  void Compute(OrtKernelContext* context) const {
    const Tensor rows = ort_.Input(context, 0);
    const auto* M = static_cast<const int64_t*>(rows.data);
    std::ostringstream lines;
    for (int64_t i = 0; i < rows.shape.at(0); ++i) {
      if (M[i] < 1 || M[i] > kMostRows) continue;
      for (const auto& kernel : choice_.Kernels()) {
        const double estimate = kernel->Nanoseconds(M[i]);
        if (estimate == kRefused) continue;
        lines << M[i] << '\t' << kernel->Name() << '\t' << estimate << '\t'
              << choice_.Nanoseconds(*kernel, M[i]) << '\n';
      }
    }
    const std::string text = lines.str();
    std::memcpy(ort_.Output(context, 0, {static_cast<int64_t>(text.size())}), text.data(), text.size());
  }

 private:
  Ort ort_;
  GemmNode node_;
  KernelChoice choice_;
};

template <class Body>
OrtStatus* AsStatus(const Ort& ort, Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return ort.CreateStatus(ErrorCode::kInvalidArgument, error.what());
  }
}

OrtCustomOp MakeOp() {
  OrtCustomOp op{};
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp*) { return "DeftGemmChoice"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputType = [](const OrtCustomOp*, size_t i) {
    return i == 0 ? ElementType::kInt64 : ElementType::kInt32;
  };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return ElementType::kUint8; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<ChoiceKernel*>(kernel); };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
    return i == 0 ? kRequired : kOptional;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return kRequired; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    const Ort ort(api);
    return AsStatus(ort, [&] { *kernel = new ChoiceKernel(ort, info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto* state = static_cast<const ChoiceKernel*>(kernel);
    return AsStatus(state->ort(), [&] { state->Compute(context); });
  };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

}  // namespace

OrtCustomOp* ChoiceOp() {
  static OrtCustomOp op = MakeOp();
  return &op;
}

}  // namespace deftonnx
