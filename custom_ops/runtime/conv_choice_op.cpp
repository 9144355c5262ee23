#include <algorithm>
#include <limits>
#include <sstream>

#include "choice_kernel.h"
#include "choice_op.h"
#include "cuda_conv.h"
#include "error.h"

namespace deftonnx {
namespace {

// Times do not depend on the weight's values, nor on which blocks are kept.
ConvNode ReadNode(const Ort& ort, const OrtKernelInfo* info) {
  const auto element = [&](const char* name) {
    return static_cast<ElementType>(ort.AttributeInt(info, name));
  };
  ConvSpec spec = ReadConvAttributes(ort, info, element("x_type"), element("w_type"), element("output_type"));
  spec.has_residual = ort.AttributeInt(info, "has_residual") != 0;
  ConvNode node{spec,
                CudaDriver::Offline(),
                0,
                static_cast<int>(ort.AttributeInt(info, "capability")),
                ReadMultiprocessors(ort, info),
                nullptr,
                nullptr,
                std::vector<float>(spec.N, 1),
                nullptr,
                {}};
  node.unpacked.resize(spec.N * spec.K);
  if (spec.block == 0) return node;
  const int64_t blocks = spec.Taps() * spec.GroupChannels() / spec.block;
  for (int64_t g = 0; g < spec.group; ++g) {
    for (int64_t i = 0; i < spec.KeptBlocks(); ++i) node.kept.push_back(static_cast<int32_t>(g * blocks + i));
  }
  return node;
}

class ConvChoiceKernel {
 public:
  ConvChoiceKernel(const Ort& ort, const OrtKernelInfo* info) : ort_(ort), node_(ReadNode(ort, info)) {
    kernels_ = ConvKernelsFor(node_);
    node_.unpacked = {};
  }
  ConvChoiceKernel(const ConvChoiceKernel&) = delete;  // the kernels refer to the node

  const Ort& ort() const { return ort_; }

  void Compute(OrtKernelContext* context) const {
    const Tensor images = ort_.Input(context, 0);
    if (images.shape.size() != 2 || images.shape[1] != 3) {
      Refuse(node_.spec, "images have shape " + ShapeText(images.shape) + ", expected (count, 3)");
    }
    const auto* sizes = static_cast<const int64_t*>(images.data);
    std::ostringstream lines;
    for (int64_t i = 0; i < images.shape[0]; ++i) {
      const ConvShape shape = ShapeOf(node_.spec, sizes[3 * i], sizes[3 * i + 1], sizes[3 * i + 2]);
      if (shape.Pixels() <= 0) continue;
      std::vector<double> times;
      for (const auto& kernel : kernels_) times.push_back(kernel->Nanoseconds(shape));
      for (size_t k : MeasuredAmong(times)) {
        lines << i << '\t' << kernels_[k]->Name() << '\t' << times[k] << '\n';
      }
    }
    PutText(ort_, context, lines.str());
  }

 private:
  Ort ort_;
  ConvNode node_;
  ConvKernels kernels_;
};

}  // namespace

OrtCustomOp* ConvChoiceOp() {
  static OrtCustomOp op = MakeChoiceOp<ConvChoiceKernel>("DeftConvChoice");
  return &op;
}

}  // namespace deftonnx
