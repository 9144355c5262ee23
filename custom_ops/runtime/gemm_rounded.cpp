#include "gemm_rounded.h"

#include <utility>

#include "round_rows.h"

namespace deftonnx {
namespace {

// The node as the multiplying kernel sees it: X is dense, of bfloat16, and has the padding that W has.
GemmNode AfterRounding(const GemmNode& node) {
  GemmNode after = node;
  after.spec.x_type = ElementType::kBfloat16;
  after.spec.rounds_x = false;
  after.spec.K = after.spec.features = node.spec.padded_K;
  after.spec.block = 0;
  after.spec.block_shift = 0;
  after.kept = nullptr;
  after.kept_blocks.clear();
  return after;
}

class RoundedKernel : public GemmKernel {
 public:
  RoundedKernel(const GemmNode& node, std::shared_ptr<const GemmNode> after,
                std::unique_ptr<GemmKernel> kernel)
      : rounder_(node, Rounded::kBfloat16), after_(std::move(after)), kernel_(std::move(kernel)) {}

  const char* Name() const override { return kernel_->Name(); }

  double Nanoseconds(int64_t M) const override { return rounder_.Nanoseconds(M) + kernel_->Nanoseconds(M); }

  size_t ScratchBytes(int64_t M) const override { return rounder_.Bytes(M) + kernel_->ScratchBytes(M); }

  void Launch(const GemmCall& call) const override {
    rounder_.Launch(call);
    GemmCall next = call;
    next.x = call.scratch;
    next.scratch = static_cast<char*>(call.scratch) + rounder_.Bytes(call.M);
    kernel_->Launch(next);
  }

 private:
  RowRounder rounder_;
  std::shared_ptr<const GemmNode> after_;  // which the kernel refers to
  std::unique_ptr<GemmKernel> kernel_;
};

}  // namespace

void RoundedKernels(const GemmNode& node, const std::vector<GemmFamily>& families, GemmKernels& kernels) {
  if (!RowRounder::Exists(node, Rounded::kBfloat16)) return;
  const auto after = std::make_shared<const GemmNode>(AfterRounding(node));
  GemmKernels multiplying;
  for (GemmFamily family : families) family(*after, multiplying);
  for (std::unique_ptr<GemmKernel>& kernel : multiplying) {
    kernels.push_back(std::make_unique<RoundedKernel>(node, after, std::move(kernel)));
  }
}

}  // namespace deftonnx
