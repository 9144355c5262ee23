#include "gemm_hopper_codes.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gemm_arguments.h"
#include "hopper_problem.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int kStepK = 64;
constexpr int kVector = 8;  // features of 16 bytes
constexpr int kPairColumns = 2;
constexpr int kGroup = 8;     // row tiles that are walked together
constexpr int kBoxRows = 64;  // of Y
// The copy engine takes so many ns for a row of a box, however narrow; half of X's come from the other block
// where a pair shares them.
constexpr double kBoxRow = 1.25, kSharedBoxRow = 1.1;
constexpr double kWeightBytes = 3050;  // a nanosecond, of W from device memory
// So many ns for a row that a tile of up to kFewRows rows loads beyond the last of X, where blocks of it are
// kept; the rest hide them.
constexpr double kEmptyRow = 2.5;
constexpr int kFewRows = 128;
// What a kernel behind one for whole rounds takes to begin.
constexpr double kNextKernel = 3800;
const std::string kRounds = "_rounds";
// Of the time of a K step, what is spared by the part of the GPU that is idle: of the power, which limits the
// clock, and of the L2 cache the others have more. Of tiles of less than kLargeTile less, and of one round
// alone. And what a block has when it is alone on a multiprocessor made for two, by which unpacking by shifts
// gains less.
constexpr double kIdle = 0.4, kIdleSmall = 0.12, kAlone = 0.78, kAloneShifting = 0.86;
constexpr int kLargeTile = 128 * 128;

// The kernels' argument: CodesProblem of kernels/gemm_hopper_codes.cu.
struct CodesProblem {
  HopperProblem problem;
  uint32_t x_lower, x_upper;
  int32_t x_next, x_after;
  uint32_t distance, multiplier, mask, factor;
  float sum_factor;
  int32_t first_column, columns;
};

bool Serves(const GemmSpec& spec) {
  if (spec.format != Format::kDeft8 || spec.x_type == ElementType::kFloat) return false;
  if (NeedsSumsApart(spec, spec.K)) return false;
  return spec.features % kVector == 0 && (spec.block == 0 || spec.block >= kVector);
}

HopperCodes CodesOf(const GemmSpec& spec) {
  if (spec.x_type == ElementType::kBfloat16 || spec.exponent_bits < 4) return HopperCodes::kShifted;
  return spec.exponent_bits == 4 ? HopperCodes::kE4 : HopperCodes::kE5;
}

class HopperCodesKernel : public GemmKernel {
 public:
  HopperCodesKernel(const GemmNode& node, const HopperCodesImage& row)
      : node_(node), row_(row), kernel_(KernelOf(node.driver, row.image, node.device)), argument_{} {
    const GemmSpec& spec = node.spec;
    HopperProblem& problem = argument_.problem;
    problem = HopperProblem(node);
    problem.w = node.driver.EncodeMatrix(node.weight, kMapUint8, 1, spec.N, spec.padded_K, spec.padded_K,
                                         row.block_n, kStepK, SwizzleOf(kStepK));
    problem.kept = node.kept;
    problem.K = static_cast<int32_t>(spec.K);
    problem.features = static_cast<int32_t>(spec.features);
    problem.block_shift = spec.block_shift;
    const bool narrow = spec.block != 0;
    problem.box_columns = narrow ? static_cast<int32_t>(std::min<int64_t>(spec.block, kStepK)) : kStepK;
    problem.pair = row.pair ? kPairColumns : 0;
    problem.splits = row.splits;
    problem.group = kGroup;
    SetDescriptor();
    SetDecoding();
  }

  const char* Name() const override { return row_.image.name; }

  double Nanoseconds(int64_t M) const override { return Nanoseconds(M, node_.spec.N); }
  // For so many columns of Y.
  double Nanoseconds(int64_t M, int64_t columns) const {
    const int64_t cells = Cells(M, columns);
    if (cells > std::numeric_limits<int32_t>::max() / 16) return kRefused;
    const bool alone = row_.blocks_per_multiprocessor > 1 && cells * ClusterSize() <= node_.multiprocessors;
    const double alone_part = row_.codes == HopperCodes::kShifted ? kAloneShifting : kAlone;
    const int64_t rounds = CeilDivide(cells, Clusters());
    const double idle = 1 - static_cast<double>(cells) / static_cast<double>(Clusters() * rounds);
    const bool large = row_.block_m * row_.block_n >= kLargeTile;
    const double spared = large ? kIdle : rounds == 1 ? kIdleSmall : 0;
    double step_ns = row_.step_ns * (alone ? alone_part : 1) * (1 - spared * idle);
    const double row_ns = row_.pair ? kSharedBoxRow : kBoxRow;
    step_ns = std::max(step_ns, row_.block_m * (kStepK / argument_.problem.box_columns - 1) * row_ns);
    const double product_ns = CeilDivide(CeilDivide(node_.spec.K, kStepK), row_.splits) * step_ns;
    const double end_ns = row_.tile_ns * EndFactor(node_.spec, row_.type);
    const double tiles_ns = rounds * (product_ns + end_ns);
    const double weight_ns = static_cast<double>(columns) * node_.spec.K / kWeightBytes;
    return row_.fixed_ns + std::max(tiles_ns, weight_ns) + EmptyRows(M) * kEmptyRow;
  }

  // As many columns of Y as whole rounds of tiles make: 0 if there is not even one, or no rest.
  int64_t InWholeRounds(int64_t M) const {
    const int64_t rows = CeilDivide(M, row_.block_m), cells = Cells(M, node_.spec.N);
    if (row_.pair || row_.splits > 1 || cells % Clusters() == 0) return 0;
    return cells / Clusters() * Clusters() / rows * row_.block_n;
  }

  void Launch(const GemmCall& call) const override { Launch(call, 0, node_.spec.N); }
  // Makes so many columns of Y, from `first` on.
  void Launch(const GemmCall& call, int64_t first, int64_t columns) const {
    const GemmSpec& spec = node_.spec;
    CodesProblem argument = argument_;
    HopperProblem& problem = argument.problem;
    argument.first_column = static_cast<int32_t>(first);
    argument.columns = static_cast<int32_t>(columns);
    int rows = row_.pair ? row_.block_m / 2 : row_.block_m;
    if (!row_.pair && spec.block == 0) problem.x_box = rows = BoxRows(call.M, row_.block_m);
    const int type = row_.type == ElementType::kFloat16 ? kMapFloat16 : kMapBfloat16;
    problem.x = node_.driver.EncodeMatrix(call.x, type, 2, call.M, spec.features, spec.features, rows,
                                          problem.box_columns, SwizzleOf(2 * problem.box_columns));
    const bool boxes = row_.splits == 1 && EndsInRegisters(spec, row_.type);
    problem.SetOutput(node_, call, boxes, kBoxRows);
    const int64_t cells = Cells(call.M, columns);
    const int64_t clusters = row_.splits > 1 ? cells : std::min(cells, Clusters());
    void* arguments[] = {&argument};
    node_.driver.Launch(kernel_.Get(), static_cast<unsigned>(clusters * ClusterSize()), ClusterSize(),
                        row_.image.threads, row_.image.shared_bytes, call.stream, arguments, true);
  }

 private:
  // How X lies in a stage: boxes of as many bytes a row, one after the other. See kernels/wgmma.cuh.
  void SetDescriptor() {
    const int bytes = 2 * argument_.problem.box_columns, box = row_.block_m * bytes / 16;
    const uint32_t swizzle = bytes == 128 ? 1 : bytes == 64 ? 2 : bytes == 32 ? 3 : 0;
    argument_.x_lower = (bytes == 16 ? box : 1) << 16;
    argument_.x_upper = swizzle << 30 | 8 * bytes / 16;
    argument_.x_next = bytes >= 64 ? 2 : row_.block_m * 2;
    argument_.x_after = bytes == 128 ? 4 : row_.block_m * 4;
  }

  void SetDecoding() {
    argument_.sum_factor = 1;
    if (row_.codes != HopperCodes::kShifted) return;
    const Decoding decoding = Decoding::ForTensorCores(node_.spec);
    argument_.distance = 8 - decoding.shift;
    argument_.multiplier = 1u << argument_.distance;
    argument_.mask = 0x80008000u | 0x7f007f00u >> decoding.shift;
    argument_.factor = decoding.factor;
    argument_.sum_factor = decoding.accumulator_scale;
  }

  // Rows beyond the last of X that a block loads with its last row tile.
  double EmptyRows(int64_t M) const {
    if (node_.spec.block == 0 || row_.block_m > kFewRows) return 0;
    const int64_t steps = CeilDivide(CeilDivide(node_.spec.K, kStepK), row_.splits);
    return static_cast<double>((CeilDivide(M, row_.block_m) * row_.block_m - M) * steps);
  }

  unsigned ClusterSize() const { return (row_.pair ? 2 : 1) * row_.splits; }
  int64_t Clusters() const {  // that run at once
    // clusters of more than two do not fill every part of the GPU that they must not leave
    const int64_t usable = ClusterSize() > 2 ? node_.multiprocessors * 9 / 10 : node_.multiprocessors;
    return std::max<int64_t>(1, usable * row_.blocks_per_multiprocessor / ClusterSize());
  }
  int64_t Cells(int64_t M, int64_t columns) const {
    return CeilDivide(M, row_.block_m) * CeilDivide(columns, row_.block_n * (row_.pair ? 2 : 1));
  }

  const GemmNode& node_;
  const HopperCodesImage& row_;
  LazyKernel& kernel_;
  CodesProblem argument_;  // what does not change between runs
};

// As many columns of Y as make whole rounds of tiles, and then the rest by the kernel that is the fastest for
// them.
class RoundsKernel : public GemmKernel {
 public:
  using Rests = std::vector<std::unique_ptr<HopperCodesKernel>>;

  RoundsKernel(const GemmNode& node, const HopperCodesImage& row, std::shared_ptr<const Rests> rests)
      : N_(node.spec.N), whole_(node, row), rests_(std::move(rests)), name_(row.image.name + kRounds) {}

  const char* Name() const override { return name_.c_str(); }

  double Nanoseconds(int64_t M) const override {
    const int64_t columns = whole_.InWholeRounds(M);
    if (columns == 0) return kRefused;
    return whole_.Nanoseconds(M, columns) + kNextKernel + Rest(M, columns).Nanoseconds(M, N_ - columns);
  }

  void Launch(const GemmCall& call) const override {
    const int64_t columns = whole_.InWholeRounds(call.M);
    whole_.Launch(call, 0, columns);
    Rest(call.M, columns).Launch(call, columns, N_ - columns);
  }

 private:
  const HopperCodesKernel& Rest(int64_t M, int64_t columns) const {
    const auto less = [&](const auto& a, const auto& b) {
      return a->Nanoseconds(M, N_ - columns) < b->Nanoseconds(M, N_ - columns);
    };
    return **std::min_element(rests_->begin(), rests_->end(), less);
  }

  int64_t N_;
  HopperCodesKernel whole_;
  std::shared_ptr<const Rests> rests_;
  std::string name_;
};

}  // namespace

void HopperCodesKernels(const GemmNode& node, GemmKernels& kernels) {
  const GemmSpec& spec = node.spec;
  if (!Serves(spec)) return;
  const int architecture = kHopperCodesImages.ArchitectureFor(node.capability);
  if (architecture != node.capability) return;  // machine code for sm_90a runs nowhere else
  const HopperCodes codes = CodesOf(spec);
  const int64_t steps = CeilDivide(spec.K, kStepK);
  auto rests = std::make_shared<RoundsKernel::Rests>();
  std::vector<const HopperCodesImage*> rows;
  for (const HopperCodesImage& row : kHopperCodesImages) {
    if (row.image.architecture != architecture || row.type != spec.x_type || row.codes != codes) continue;
    if (row.splits > steps) continue;
    rests->push_back(std::make_unique<HopperCodesKernel>(node, row));
    if (node.Admits(row.image.name)) kernels.push_back(std::make_unique<HopperCodesKernel>(node, row));
    if (!row.pair && row.splits == 1) rows.push_back(&row);
  }
  for (const HopperCodesImage* row : rows) {
    if (!node.Admits((row->image.name + kRounds).c_str())) continue;
    kernels.push_back(std::make_unique<RoundsKernel>(node, *row, rests));
  }
}

}  // namespace deftonnx
