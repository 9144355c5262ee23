#include "round_rows.h"

#include <algorithm>

#include "error.h"
#include "gemm_arguments.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int64_t kVector = 8;  // features that a thread reads at once
constexpr int64_t kHeld = 4;    // vectors that it keeps
constexpr int kLeastRowThreads = 32, kMostRowThreads = 256;
constexpr double kBytes = 4000;  // a nanosecond, read and written
constexpr double kLaunch = 2500;
constexpr int64_t kAlignment = 256;

// The argument of the kernels: Problem of kernels/round_rows.cu.
struct Problem {
  const void* x;
  void* values;
  void* powers;
  const void* kept;
  int32_t M, K, features, padded_K, block_shift, row_threads, vectors;
};
static_assert(sizeof(Problem) == 64);

const RoundRowsImage* Find(const GemmNode& node, Rounded to) {
  const int architecture = kRoundRowsImages.ArchitectureFor(node.capability);
  for (const RoundRowsImage& row : kRoundRowsImages) {
    if (row.image.architecture == architecture && row.x_type == node.spec.x_type && row.to == to) return &row;
  }
  return nullptr;
}

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

bool RowRounder::Exists(const GemmNode& node, Rounded to) { return Find(node, to) != nullptr; }

RowRounder::RowRounder(const GemmNode& node, Rounded to) : node_(node), to_(to), row_(Find(node, to)) {
  if (row_ == nullptr) Refuse(node.spec, "no kernel rounds X for this GPU");
  kernel_ = &KernelOf(node.driver, row_->image, node.device);
}

size_t RowRounder::PowersAt(int64_t M) const {
  return Aligned(static_cast<size_t>(M) * node_.spec.padded_K * (to_ == Rounded::kCodes ? 1 : 2));
}

size_t RowRounder::Bytes(int64_t M) const {
  return PowersAt(M) + (to_ == Rounded::kCodes ? Aligned(static_cast<size_t>(M) * sizeof(float)) : 0);
}

double RowRounder::Nanoseconds(int64_t M) const {
  const double row = node_.spec.K * (ElementBytes(node_.spec.x_type) + (to_ == Rounded::kCodes ? 1.0 : 2.0));
  return kLaunch + M * row / kBytes;
}

void RowRounder::Launch(const GemmCall& call) const {
  const GemmSpec& spec = node_.spec;
  const int64_t vectors = spec.padded_K / kVector;
  int row_threads = kLeastRowThreads;
  while (row_threads < kMostRowThreads && row_threads * kHeld < vectors) row_threads *= 2;
  const bool whole = spec.features % kVector == 0 && (spec.block == 0 || spec.block >= kVector);
  char* const scratch = static_cast<char*>(call.scratch);
  Problem problem{call.x,
                  scratch,
                  to_ == Rounded::kCodes ? scratch + PowersAt(call.M) : nullptr,
                  node_.kept,
                  static_cast<int32_t>(call.M),
                  static_cast<int32_t>(spec.K),
                  static_cast<int32_t>(spec.features),
                  static_cast<int32_t>(spec.padded_K),
                  spec.block_shift,
                  row_threads,
                  whole};
  void* arguments[] = {&problem};
  const int64_t rows = row_->image.threads / row_threads;
  const bool early = CanStartEarly(row_->image.architecture);
  node_.driver.Launch(kernel_->Get(), static_cast<unsigned>(CeilDivide(call.M, rows)), 1, row_->image.threads,
                      0, call.stream, arguments, early);
}

}  // namespace deftonnx
