#include "choice_op.h"

#include <sstream>

#include "choice_kernel.h"
#include "error.h"
#include "float16_weight.h"
#include "kernel_choice.h"

namespace deftonnx {
namespace {

GemmNode ReadNode(const Ort& ort, const OrtKernelInfo* info) {
  const auto element = [&](const char* name) {
    return static_cast<ElementType>(ort.AttributeInt(info, name));
  };
  GemmSpec spec =
      AsServed(ReadGemmAttributes(ort, info, element("x_type"), element("w_type"), element("output_type")));
  spec.rows = ort.AttributeInt(info, "rows");
  spec.has_residual = ort.AttributeInt(info, "has_residual") != 0;
  GemmNode node{spec,
                CudaDriver::Offline(),
                0,
                static_cast<int>(ort.AttributeInt(info, "capability")),
                ReadMultiprocessors(ort, info),
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
    PutText(ort_, context, lines.str());
  }

 private:
  Ort ort_;
  GemmNode node_;
  KernelChoice choice_;
};

}  // namespace

OrtCustomOp* ChoiceOp() {
  static OrtCustomOp op = MakeChoiceOp<ChoiceKernel>("DeftGemmChoice");
  return &op;
}

}  // namespace deftonnx
