// DeftConv by cuDNN where it is there: all features, 16 bits. cuDNN guesses which plans are fast; each of its
// first guesses is a kernel, and which one is fastest is measured as with other kernels.
#include <algorithm>
#include <mutex>

#include "conv_kernel.h"
#include "cudnn_conv_graph.h"
#include "cudnn_conv_plan.h"

namespace deftonnx {
namespace {

constexpr size_t kGuesses = 3;
constexpr double kLong = 100000;  // nanoseconds; for a shorter run cuDNN's first guess has to do

// What it was seen to take on the H200: about 70% of the device's arithmetic, 85% of its memory.
double Estimate(const ConvNode& node, const ConvShape& shape) {
  const ConvSpec& spec = node.spec;
  const double products = 1.0 * shape.Pixels() * spec.N * spec.K;
  const double elements = 1.0 * shape.batch * shape.in_rows * shape.in_columns * spec.channels +
                          1.0 * shape.Pixels() * spec.N * (spec.has_residual ? 2 : 1);
  return 2500 + std::max(products / (2.5e3 * node.multiprocessors), 2 * elements / 3500);
}

class CudnnConv : public ConvKernel {
 public:
  CudnnConv(const ConvNode& node, const cudnn::Library& library, size_t guess)
      : node_(node), library_(library), guess_(guess), weight_(SharedWeight16(node)) {}

  const char* Name() const override { return "cudnn"; }

  double Nanoseconds(const ConvShape& shape) override {
    return PlanFor(shape) == nullptr ? kConvRefused : Estimate(node_, shape);
  }

  bool ServesEveryShape() const override { return false; }

  size_t ScratchBytes(const ConvShape& shape) override { return PlanFor(shape)->WorkspaceBytes(); }

  void Launch(const ConvCall& call) override {
    // cuDNN launches kernels that may start early and do not wait before they read the residual: they rely on
    // the kernel ahead not letting them, as ours do
    if (node_.capability >= 90) node_.driver.Separate(call.stream, call.y);
    PlanFor(call.shape)
        ->Run({call.x, weight_->values.data(), weight_->scale.data(), node_.bias, call.residual, call.y,
               call.scratch},
              call.stream);
  }

 private:
  // The plan of this guess for images of that shape, made at first use; null if there is none.
  const cudnn::ConvPlan* PlanFor(const ConvShape& shape) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [known, plans] : plans_) {
      if (known == shape) return At(plans);
    }
    plans_.emplace_back(shape, cudnn::FindConvPlans(library_, node_.device, node_.spec, shape,
                                                    weight_->scaled, Estimate(node_, shape) >= kLong));
    return At(plans_.back().second);
  }

  const cudnn::ConvPlan* At(const cudnn::ConvPlans& plans) const {
    return guess_ < plans->size() ? &(*plans)[guess_] : nullptr;
  }

  const ConvNode& node_;
  const cudnn::Library& library_;
  size_t guess_;
  std::shared_ptr<const Weight16> weight_;
  std::mutex mutex_;
  std::vector<std::pair<ConvShape, cudnn::ConvPlans>> plans_;
};

// Stands for cuDNN where kernels are only asked for their times.
class OfflineCudnnConv : public ConvKernel {
 public:
  explicit OfflineCudnnConv(const ConvNode& node) : node_(node) {}
  const char* Name() const override { return "cudnn"; }
  double Nanoseconds(const ConvShape& shape) override { return Estimate(node_, shape); }
  bool ServesEveryShape() const override { return false; }
  void Launch(const ConvCall&) override { throw cudnn::Error("no GPU to launch on"); }

 private:
  const ConvNode& node_;
};

}  // namespace

void CudnnConvKernels(const ConvNode& node, ConvKernels& kernels) {
  const ConvSpec& spec = node.spec;
  if (spec.block != 0 || spec.x_type == ElementType::kFloat || spec.y_type != spec.x_type) return;
  if (!node.Admits("cudnn") || !cudnn::Knows(spec.activation)) return;
  if (&node.driver == &CudaDriver::Offline()) {
    kernels.push_back(std::make_unique<OfflineCudnnConv>(node));
    return;
  }
  const cudnn::Library* library = cudnn::Library::Find();
  if (library == nullptr) return;
  for (size_t i = 0; i < kGuesses; ++i) kernels.push_back(std::make_unique<CudnnConv>(node, *library, i));
}

}  // namespace deftonnx
