// DeftConv by cuDNN where it is there: all features, 16 bits. cuDNN guesses which plans are fast; each of its
// first guesses is a kernel, and which one is fastest is measured as with other kernels. It is asked only
// where that may gain something: making a plan takes it longer than a session takes for all else.
#include <algorithm>
#include <mutex>
#include <set>

#include "conv_kernel.h"
#include "cudnn_conv_graph.h"
#include "cudnn_conv_plan.h"
#include "error.h"

namespace deftonnx {
namespace {

constexpr size_t kGuesses = 3;
constexpr double kLong = 100000;  // nanoseconds; for a shorter run cuDNN's first guess has to do

constexpr double kMayGain = 1.4;  // the other kernels' estimate to cuDNN's; below that it was never faster

// What it was seen to take on the H200: about 70% of the device's arithmetic, 85% of its memory.
double Estimate(const ConvNode& node, const ConvShape& shape) {
  const ConvSpec& spec = node.spec;
  const double products = 1.0 * shape.Pixels() * spec.N * spec.K;
  const double elements = 1.0 * shape.batch * shape.in_rows * shape.in_columns * spec.channels +
                          1.0 * shape.Pixels() * spec.N * (spec.has_residual ? 2 : 1);
  return 5000 + std::max(products / (2.5e3 * node.multiprocessors), 2 * elements / 3500);
}

// Whether a run is so long that a small gain counts, or cuDNN is likely to be faster than the others.
bool MayGain(const ConvNode& node, const std::vector<ConvKernel*>& others, const ConvShape& shape) {
  const double estimate = Estimate(node, shape);
  double least = kConvRefused;
  for (ConvKernel* other : others) least = std::min(least, other->Nanoseconds(shape));
  return estimate >= kLong || least >= kMayGain * estimate;
}

class CudnnConv;

// The nodes that cuDNN may serve, for plans to be made of those of a session together.
struct Registered {
  std::mutex mutex;
  std::vector<const CudnnConv*> nodes;
};

Registered& Register() {
  static auto* found = new Registered;
  return *found;
}

class CudnnConv : public ConvKernel {
 public:
  CudnnConv(const ConvNode& node, const cudnn::Library& library, std::vector<ConvKernel*> others,
            size_t guess)
      : node_(node),
        library_(library),
        others_(std::move(others)),
        guess_(guess),
        weight_(SharedWeight16(node)) {
    if (guess_ != 0) return;  // one of a node is enough
    std::lock_guard<std::mutex> lock(Register().mutex);
    Register().nodes.push_back(this);
  }

  ~CudnnConv() override {
    std::lock_guard<std::mutex> lock(Register().mutex);
    std::vector<const CudnnConv*>& nodes = Register().nodes;
    nodes.erase(std::remove(nodes.begin(), nodes.end(), this), nodes.end());
  }

  const char* Name() const override { return "cudnn"; }

  double Nanoseconds(const ConvShape& shape) override {
    return PlanFor(shape) == nullptr ? kConvRefused : Estimate(node_, shape);
  }

  bool ServesEveryShape() const override { return false; }

  bool IsReady(const ConvShape& shape) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::any_of(plans_.begin(), plans_.end(), [&](const auto& known) { return known.first == shape; });
  }

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
  // The plan of this guess for images of that shape, made at first use; null if there is none to use.
  const cudnn::ConvPlan* PlanFor(const ConvShape& shape) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [known, plans] : plans_) {
      if (known == shape) return At(plans);
    }
    if (!MayGain(node_, others_, shape)) {
      plans_.emplace_back(shape, std::make_shared<const std::vector<cudnn::ConvPlan>>());
      return nullptr;
    }
    if (guess_ == 0 && shape.in_rows == node_.known_rows && shape.in_columns == node_.known_columns) {
      cudnn::MakeConvPlans(library_, node_.driver, node_.device, QuestionsOfSession(shape.batch));
    }
    const cudnn::ConvPlans plans =
        cudnn::FindConvPlans(library_, node_.driver, node_.device, Question(shape));
    if (plans == nullptr) return nullptr;
    plans_.emplace_back(shape, plans);
    return At(plans);
  }

  cudnn::ConvQuestion Question(const ConvShape& shape) const {
    return {node_.spec, shape, weight_->scaled, Estimate(node_, shape) >= kLong};
  }

  // What the session's nodes will ask when they run with so many images, as far as their sizes are known;
  // once.
  std::vector<cudnn::ConvQuestion> QuestionsOfSession(int64_t batch) const {
    std::lock_guard<std::mutex> lock(Register().mutex);
    std::vector<cudnn::ConvQuestion> questions;
    if (prepared_.count(batch) != 0) return questions;
    for (const CudnnConv* other : Register().nodes) {
      const ConvNode& node = other->node_;
      if (node.session != node_.session || node.device != node_.device || node.known_rows == 0) continue;
      other->prepared_.insert(batch);
      try {
        const ConvShape shape = ShapeOf(node.spec, batch, node.known_rows, node.known_columns);
        if (MayGain(node, other->others_, shape)) questions.push_back(other->Question(shape));
      } catch (const InvalidNode&) {
        // images smaller than the filter: that node says so when it runs
      }
    }
    return questions;
  }

  const cudnn::ConvPlan* At(const cudnn::ConvPlans& plans) const {
    return guess_ < plans->size() ? &(*plans)[guess_] : nullptr;
  }

  const ConvNode& node_;
  const cudnn::Library& library_;
  const std::vector<ConvKernel*> others_;  // the node's own kernels
  const size_t guess_;
  std::shared_ptr<const Weight16> weight_;
  mutable std::set<int64_t> prepared_;  // numbers of images that QuestionsOfSession was asked for
  std::mutex mutex_;
  std::vector<std::pair<ConvShape, cudnn::ConvPlans>> plans_;
};

// Stands for cuDNN where kernels are only asked for their times.
class OfflineCudnnConv : public ConvKernel {
 public:
  OfflineCudnnConv(const ConvNode& node, std::vector<ConvKernel*> others)
      : node_(node), others_(std::move(others)) {}
  const char* Name() const override { return "cudnn"; }
  double Nanoseconds(const ConvShape& shape) override {
    return MayGain(node_, others_, shape) ? Estimate(node_, shape) : kConvRefused;
  }
  bool ServesEveryShape() const override { return false; }
  void Launch(const ConvCall&) override { throw cudnn::Error("no GPU to launch on"); }

 private:
  const ConvNode& node_;
  const std::vector<ConvKernel*> others_;
};

}  // namespace

void CudnnConvKernels(const ConvNode& node, ConvKernels& kernels) {
  const ConvSpec& spec = node.spec;
  if (spec.pool != 1 || spec.block != 0 || spec.x_type == ElementType::kFloat || spec.y_type != spec.x_type)
    return;
  if (!node.Admits("cudnn") || !cudnn::Knows(spec.activation)) return;
  std::vector<ConvKernel*> others;
  for (const auto& kernel : kernels) others.push_back(kernel.get());
  if (&node.driver == &CudaDriver::Offline()) {
    kernels.push_back(std::make_unique<OfflineCudnnConv>(node, others));
    return;
  }
  const cudnn::Library* library = cudnn::Library::Find();
  if (library == nullptr) return;
  for (size_t i = 0; i < kGuesses; ++i) {
    kernels.push_back(std::make_unique<CudnnConv>(node, *library, others, i));
  }
}

}  // namespace deftonnx
