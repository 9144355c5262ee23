// DeftConv by cuDNN where it is there: all features, 16 bits.
#include <algorithm>
#include <mutex>

#include "conv_kernel.h"
#include "cudnn_conv_graph.h"

namespace deftonnx {
namespace {

class CudnnConv : public ConvKernel {
 public:
  CudnnConv(const ConvNode& node, const cudnn::Library& library)
      : node_(node), library_(library), weight_(MakeWeight16(node)), handle_(library.Handle(node.device)) {}

  const char* Name() const override { return "cudnn"; }

  // What it was seen to take (benchmarks/conv_speed.py): about 70% of the device's arithmetic, 85% of its
  // memory.
  double Nanoseconds(const ConvShape& shape) override {
    if (PlanFor(shape) == nullptr) return kConvRefused;
    const ConvSpec& spec = node_.spec;
    const double products = 1.0 * shape.Pixels() * spec.N * spec.K;
    const double elements = 1.0 * shape.batch * shape.in_rows * shape.in_columns * spec.channels +
                            1.0 * shape.Pixels() * spec.N * (spec.has_residual ? 2 : 1);
    return 2500 + std::max(products / (2.5e3 * node_.multiprocessors), 2 * elements / 3500);
  }

  bool ServesEveryShape() const override { return false; }

  size_t ScratchBytes(const ConvShape& shape) override { return PlanFor(shape)->WorkspaceBytes(); }

  void Launch(const ConvCall& call) override {
    PlanFor(call.shape)
        ->Run({call.x, weight_.values.data(), weight_.scale.data(), node_.bias, call.residual, call.y,
               call.scratch},
              call.stream);
  }

 private:
  // The plan for images of that shape, made at first use; null if cuDNN has none.
  const cudnn::ConvPlan* PlanFor(const ConvShape& shape) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [known, plan] : plans_) {
      if (known == shape) return plan.get();
    }
    std::shared_ptr<const cudnn::ConvPlan> plan;
    try {
      plan = cudnn::SharedConvPlan(library_, handle_, node_.spec, shape, weight_.scaled);
    } catch (const cudnn::Error&) {
      // the other kernels serve this shape
    }
    plans_.emplace_back(shape, std::move(plan));
    return plans_.back().second.get();
  }

  const ConvNode& node_;
  const cudnn::Library& library_;
  Weight16 weight_;
  void* handle_;
  std::mutex mutex_;
  std::vector<std::pair<ConvShape, std::shared_ptr<const cudnn::ConvPlan>>> plans_;
};

}  // namespace

void CudnnConvKernels(const ConvNode& node, ConvKernels& kernels) {
  const ConvSpec& spec = node.spec;
  if (spec.block != 0 || spec.x_type == ElementType::kFloat || spec.y_type != spec.x_type ||
      !node.Admits("cudnn"))
    return;
  if (!cudnn::ConvPlan::Knows(spec.activation)) return;
  const cudnn::Library* library = cudnn::Library::Find();
  if (library == nullptr) return;
  try {
    kernels.push_back(std::make_unique<CudnnConv>(node, *library));
  } catch (const cudnn::Error&) {
    // not usable on this device
  }
}

}  // namespace deftonnx
