#include "gemm_hopper_fp8.h"

#include <algorithm>
#include <limits>

#include "gemm_arguments.h"
#include "hopper_problem.h"
#include "kernel_cache.h"
#include "round_rows.h"

namespace deftonnx {
namespace {

constexpr int kStepK = 128;     // codes
constexpr int kStepPairs = 64;  // what the copy engine moves: two codes as one 16-bit element
constexpr int kGroup = 8;       // row tiles that are walked together
// How much longer the end of a tile takes with a residual or a curve than with a clamp.
constexpr double kCostlyEnd = 2.5;

// The argument of the kernels: Fp8Problem of kernels/gemm_hopper_fp8.cu.
struct Fp8Problem {
  HopperProblem problem;
  const void* powers;
};

class HopperFp8Kernel : public GemmKernel {
 public:
  HopperFp8Kernel(const GemmNode& node, const HopperFp8Image& row)
      : node_(node),
        row_(row),
        rounder_(node, Rounded::kCodes),
        kernel_(KernelOf(node.driver, row.image, node.device)),
        problem_(node) {
    problem_.w = Map(node.weight, node.spec.N, row.block_n);
    problem_.K = problem_.features = static_cast<int32_t>(node.spec.padded_K / 2);
    problem_.box_columns = kStepPairs;
    problem_.splits = 1;
    problem_.group = kGroup;
  }

  const char* Name() const override { return row_.image.name; }

  double Nanoseconds(int64_t M) const override {
    const int64_t tiles = Tiles(M);
    if (tiles > std::numeric_limits<int32_t>::max() / 16) return kRefused;
    const int64_t rounds = CeilDivide(tiles, node_.multiprocessors);
    const double product_ns = CeilDivide(node_.spec.padded_K, kStepK) * row_.step_ns;
    const bool costly = node_.spec.has_residual || node_.spec.activation.curve != Activation::kLinear;
    const double end_ns = row_.tile_ns * (costly ? kCostlyEnd : 1);
    return rounder_.Nanoseconds(M) + row_.fixed_ns + rounds * (product_ns + end_ns);
  }

  size_t ScratchBytes(int64_t M) const override { return rounder_.Bytes(M); }

  void Launch(const GemmCall& call) const override {
    rounder_.Launch(call);
    Fp8Problem fp8{problem_, static_cast<const char*>(call.scratch) + rounder_.PowersAt(call.M)};
    fp8.problem.x_box = BoxRows(call.M, row_.block_m);
    fp8.problem.x = Map(call.scratch, call.M, fp8.problem.x_box);
    const ElementType y_type = node_.spec.y_type;
    const bool narrow = y_type != ElementType::kFloat;
    fp8.problem.SetOutput(node_, call, narrow && EndsInRegisters(node_.spec, y_type));
    void* arguments[] = {&fp8};
    const int64_t blocks = std::min<int64_t>(Tiles(call.M), node_.multiprocessors);
    node_.driver.Launch(kernel_.Get(), static_cast<unsigned>(blocks), 1, row_.image.threads,
                        row_.image.shared_bytes, call.stream, arguments, true);
  }

 private:
  TensorMap Map(const void* codes, int64_t rows, int box_rows) const {
    const int64_t pairs = node_.spec.padded_K / 2;
    return node_.driver.EncodeMatrix(codes, kMapFloat16, 2, rows, pairs, pairs, box_rows, kStepPairs,
                                     SwizzleOf(2 * kStepPairs));
  }

  int64_t Tiles(int64_t M) const {
    return CeilDivide(M, row_.block_m) * CeilDivide(node_.spec.N, row_.block_n);
  }

  const GemmNode& node_;
  const HopperFp8Image& row_;
  RowRounder rounder_;
  LazyKernel& kernel_;
  HopperProblem problem_;  // what does not change between runs
};

}  // namespace

void HopperFp8Kernels(const GemmNode& node, GemmKernels& kernels) {
  const int architecture = kHopperFp8Images.ArchitectureFor(node.capability);
  for (const HopperFp8Image& row : kHopperFp8Images) {
    // machine code for sm_90a runs nowhere else
    if (row.image.architecture != architecture || architecture != node.capability) continue;
    if (node.Admits(row.image.name)) kernels.push_back(std::make_unique<HopperFp8Kernel>(node, row));
  }
}

}  // namespace deftonnx
