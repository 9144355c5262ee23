#include "kernel_choice.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "error.h"
#include "gemm_few_rows.h"
#include "gemm_gathered.h"
#include "gemm_hopper.h"
#include "gemm_hopper_codes.h"
#include "gemm_hopper_fp8.h"
#include "gemm_rounded.h"
#include "gemm_simt.h"
#include "gemm_stream.h"
#include "gemm_tensor_core.h"
#include "gemm_unpacked.h"

namespace deftonnx {
namespace {

// Every family that multiplies X as it is.
const std::vector<GemmFamily>& Families() {
  static const std::vector<GemmFamily> families = {StreamKernels,      FewRowsKernels,    HopperKernels,
                                                   HopperCodesKernels, TensorCoreKernels, SimtKernels};
  return families;
}

constexpr int kIndexBits = 16;

// Rows of X that stand for all, where they are not known.
constexpr int64_t kRows[] = {48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192};

}  // namespace

KernelChoice::KernelChoice(const GemmNode& node, std::shared_ptr<const MeasuredTimes> measured)
    : node_(node), measured_(std::move(measured)) {
  if (node.spec.rounds_x) {
    HopperFp8Kernels(node, kernels_);
    RoundedKernels(node, Families(), kernels_);
  } else {
    for (GemmFamily family : Families()) family(node, kernels_);
    GatheredKernels(node, Families(), kernels_);
    AddUnpacked();
  }
  if (!kernels_.empty()) return;
  const std::string wanted = node.spec.kernel.empty() ? "" : " '" + node.spec.kernel + "'";
  throw InvalidNode("DeftGemm node '" + node.spec.node + "': no kernel" + wanted +
                    " for compute capability " + std::to_string(node.capability) +
                    ", this format, these types and this shape");
}

void KernelChoice::AddUnpacked() {
  if (!CanUnpack(node_)) return;
  const GemmKernels estimated = UnpackedKernels(node_, false);
  if (estimated.empty() || (!kernels_.empty() && !IsWorthACopy(estimated))) return;
  try {
    for (auto& kernel : UnpackedKernels(node_, true)) kernels_.push_back(std::move(kernel));
  } catch (const CudaError&) {
    if (kernels_.empty()) throw;  // else the GPU has no memory for it, and the codes serve
  }
}

bool KernelChoice::IsWorthACopy(const GemmKernels& unpacked) const {
  const auto gains = [&](int64_t M) { return Least(unpacked, M) < Least(kernels_, M); };
  if (node_.spec.rows > 0) return gains(node_.spec.rows);
  return std::any_of(std::begin(kRows), std::end(kRows), gains);
}

double KernelChoice::Least(const GemmKernels& kernels, int64_t M) const {
  double least = kRefused;
  for (const auto& kernel : kernels) least = std::min(least, Nanoseconds(*kernel, M));
  return least;
}

double KernelChoice::Nanoseconds(const GemmKernel& kernel, int64_t M) const {
  const double estimate = kernel.Nanoseconds(M);
  if (measured_ == nullptr || estimate == kRefused) return estimate;
  return estimate * measured_->Correction(kernel.MeasuredAs(), M, node_.spec.K, node_.spec.N);
}

const GemmKernel& KernelChoice::For(int64_t M) const {
  const uint64_t last = last_.load(std::memory_order_relaxed);
  if (static_cast<int64_t>(last >> kIndexBits) == M) return *kernels_[last & ((1 << kIndexBits) - 1)];
  size_t best = 0;
  double least = kRefused;
  for (size_t i = 0; i < kernels_.size(); ++i) {
    const double time = Nanoseconds(*kernels_[i], M);
    if (time < least) least = time, best = i;
  }
  if (least == kRefused) {
    throw InvalidNode("DeftGemm node '" + node_.spec.node + "': no kernel '" + node_.spec.kernel +
                      "' for X of " + std::to_string(M) + " rows");
  }
  last_.store(static_cast<uint64_t>(M) << kIndexBits | best, std::memory_order_relaxed);
  return *kernels_[best];
}

}  // namespace deftonnx
