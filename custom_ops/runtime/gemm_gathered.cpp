#include "gemm_gathered.h"

#include <utility>

#include "gemm_arguments.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int64_t kLongBlock = 64;  // features: a whole K step, which kernels load as it is
constexpr int64_t kVectorBytes = 16;
constexpr int64_t kRows = 8;  // of a thread
constexpr int64_t kAlignment = 256;
constexpr double kBytes = 4000;  // a nanosecond, read and written
constexpr double kLaunch = 2500;
const std::string kSuffix = "_gathered";

// The argument of the kernels: Problem of kernels/gather_kept.cu.
struct Problem {
  const void* x;
  void* values;
  const void* kept;
  int32_t M, words, features, block_shift, vectors, row_threads;
};
static_assert(sizeof(Problem) == 48);

bool EndsInSuffix(const std::string& name) {
  return name.size() > kSuffix.size() &&
         name.compare(name.size() - kSuffix.size(), kSuffix.size(), kSuffix) == 0;
}

// The node as the multiplying kernel sees it: X is dense, and has the padding that W has.
GemmNode AfterGathering(const GemmNode& node) {
  GemmNode after = node;
  after.spec.K = after.spec.features = node.spec.padded_K;
  after.spec.block = 0;
  after.spec.block_shift = 0;
  after.kept = nullptr;
  after.kept_blocks.clear();
  if (!node.spec.kernel.empty()) {
    after.spec.kernel = node.spec.kernel.substr(0, node.spec.kernel.size() - kSuffix.size());
  }
  return after;
}

// Copies the kept features of a node's X into scratch memory.
class Gatherer {
 public:
  explicit Gatherer(const GemmNode& node)
      : node_(node),
        element_bytes_(ElementBytes(node.spec.x_type)),
        row_bytes_(node.spec.padded_K * element_bytes_) {
    for (const GatherKeptImage& row : kGatherKeptImages) {
      if (row.image.architecture == kGatherKeptImages.ArchitectureFor(node.capability)) rows_.push_back(&row);
    }
    for (const GatherKeptImage* row : rows_)
      kernels_.push_back(&KernelOf(node.driver, row->image, node.device));
  }

  size_t Bytes(int64_t M) const { return CeilDivide(M * row_bytes_, kAlignment) * kAlignment; }

  double Nanoseconds(int64_t M) const {
    return kLaunch + M * (node_.spec.features * element_bytes_ + row_bytes_) / kBytes;
  }

  void Launch(const GemmCall& call) const {
    const GemmSpec& spec = node_.spec;
    const size_t i = Widest();
    const KernelImage& image = rows_[i]->image;
    const int64_t elements = rows_[i]->word_bytes / element_bytes_;  // of a word
    const int64_t vectors = row_bytes_ / kVectorBytes;
    int row_threads = 1, shift = spec.block_shift;
    while (row_threads < image.threads && row_threads < vectors) row_threads *= 2;
    for (int64_t e = elements; e > 1; e /= 2) --shift;
    Problem problem{call.x,
                    call.scratch,
                    node_.kept,
                    static_cast<int32_t>(call.M),
                    static_cast<int32_t>(spec.K / elements),
                    static_cast<int32_t>(spec.features / elements),
                    shift,
                    static_cast<int32_t>(vectors),
                    row_threads};
    void* arguments[] = {&problem};
    const int64_t blocks =
        CeilDivide(vectors, row_threads) * CeilDivide(call.M, kRows * image.threads / row_threads);
    node_.driver.Launch(kernels_[i]->Get(), static_cast<unsigned>(blocks), 1, image.threads, 0, call.stream,
                        arguments, CanStartEarly(image.architecture));
  }

 private:
  // The kernel of the most bytes that are neighbours, and aligned, in every row of X.
  size_t Widest() const {
    const GemmSpec& spec = node_.spec;
    for (size_t i = 0; i + 1 < rows_.size(); ++i) {
      const int64_t bytes = rows_[i]->word_bytes;
      if (spec.features * element_bytes_ % bytes == 0 && spec.block * element_bytes_ % bytes == 0) return i;
    }
    return rows_.size() - 1;
  }

  const GemmNode& node_;
  int64_t element_bytes_, row_bytes_;
  std::vector<const GatherKeptImage*> rows_;  // the widest first
  std::vector<LazyKernel*> kernels_;
};

class GatheredKernel : public GemmKernel {
 public:
  GatheredKernel(std::shared_ptr<const Gatherer> gatherer, std::shared_ptr<const GemmNode> after,
                 std::unique_ptr<GemmKernel> kernel)
      : gatherer_(std::move(gatherer)),
        after_(std::move(after)),
        kernel_(std::move(kernel)),
        name_(kernel_->Name() + kSuffix) {}

  const char* Name() const override { return name_.c_str(); }

  double Nanoseconds(int64_t M) const override { return gatherer_->Nanoseconds(M) + kernel_->Nanoseconds(M); }

  size_t ScratchBytes(int64_t M) const override { return gatherer_->Bytes(M) + kernel_->ScratchBytes(M); }

  void Launch(const GemmCall& call) const override {
    gatherer_->Launch(call);
    GemmCall next = call;
    next.x = call.scratch;
    next.scratch = static_cast<char*>(call.scratch) + gatherer_->Bytes(call.M);
    kernel_->Launch(next);
  }

 private:
  std::shared_ptr<const Gatherer> gatherer_;
  std::shared_ptr<const GemmNode> after_;  // which the kernel refers to
  std::unique_ptr<GemmKernel> kernel_;
  std::string name_;
};

}  // namespace

void GatheredKernels(const GemmNode& node, const std::vector<GemmFamily>& families, GemmKernels& kernels) {
  if (node.spec.block == 0 || node.spec.block >= kLongBlock) return;
  if (!node.spec.kernel.empty() && !EndsInSuffix(node.spec.kernel)) return;
  if (kGatherKeptImages.ArchitectureFor(node.capability) == 0) return;
  const auto after = std::make_shared<const GemmNode>(AfterGathering(node));
  const auto gatherer = std::make_shared<const Gatherer>(node);
  GemmKernels multiplying;
  for (GemmFamily family : families) family(*after, multiplying);
  for (std::unique_ptr<GemmKernel>& kernel : multiplying) {
    kernels.push_back(std::make_unique<GatheredKernel>(gatherer, after, std::move(kernel)));
  }
}

}  // namespace deftonnx
