#include "gemm_stream.h"

#include <algorithm>

#include "gemm_arguments.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

// As in gemm_stream.cu.
constexpr int kRowBytes = 128;             // of W in a stage
constexpr int kWarpRows = 32;              // output features a warp multiplies
constexpr int kLoaders = 4;                // warps that bring X
constexpr int kOtherWarps = 1 + kLoaders;  // and W
constexpr int kRowsAtOnce = 4;             // of X in a part of the sums
// Steps of a block's share of K up to which blocks gain by beginning at different ones.
constexpr int kMostTurns = 64;

// The kernel's only argument, field by field.
struct Problem {
  TensorMap w;
  const void* x;
  const void* scale;
  const void* bias;
  const void* kept;
  const void* residual;
  void* y;
  int32_t M, N, K, features, block_shift;
  int32_t decode_shift, decode_factor;
  float accumulator_scale;
  int32_t curve, gated;
  float slope, offset, low, high;
  int32_t y_type;
  int32_t row_warps, k_warps, stages, cluster, constants_offset, parts_offset, turns;
};

int CodeBytes(const GemmSpec& spec) { return spec.format == Format::kDeft8 ? 1 : 2; }

// Input features of a stage.
int StepFeatures(const GemmSpec& spec) { return kRowBytes / CodeBytes(spec); }

bool Serves(const GemmSpec& spec) {
  return spec.features % 8 == 0 && spec.K % 8 == 0 && (spec.block == 0 || spec.block >= 8);
}

// How a launch shares out the work.
struct Schedule {
  int row_warps;  // of 32 output features each, in a block
  int k_warps;    // that share K in a block: a power of two
  int cluster;    // blocks that share K: a power of two
  int room;       // blocks for which a multiprocessor has room
  int at_once;    // of these, the launch's own; the others are the next one's

  int Rows() const { return kWarpRows * row_warps; }
  int Threads() const { return 32 * (kOtherWarps + row_warps * k_warps); }

  // Bytes of scale, bias and a barrier in shared memory.
  int ConstantBytes() const { return 2 * Rows() * 4 + 16; }

  // Bytes of the parts of the sums that a block ends, of every k_warp of the cluster.
  int PartBytes(int most_rows) const {
    const int units = row_warps * (most_rows / kRowsAtOnce);
    return static_cast<int>(CeilDivide(units, cluster)) * cluster * k_warps * kWarpRows * kRowsAtOnce * 4;
  }

  // Whether they have a place of their own beside the ring: other blocks send some while it is in use.
  bool PartsApart() const { return cluster > 1; }
};

// Shared memory of a stage beside W's: X, and two barriers.
int OtherStageBytes(const GemmSpec& spec, const StreamImage& row) {
  return row.most_rows * StepFeatures(spec) * 2 + 16;
}

// The most row_warps of a block whose stages, one for each of kLoaders, fit its shared memory.
int64_t MostRowWarps(const GemmSpec& spec, const StreamImage& row, bool parts_apart) {
  constexpr int kMost = 7, kConstantBytes = 2 * kWarpRows * 4;
  const int part_bytes = parts_apart ? kWarpRows * row.most_rows * 4 / kLoaders : 0;
  const int space = row.image.shared_bytes / kLoaders - OtherStageBytes(spec, row);
  return std::clamp(space / (kWarpRows * kRowBytes + kConstantBytes + part_bytes), 1, kMost);
}

// One block a multiprocessor, in as few equal waves as there must be. Blocks share K where one warp's output
// features are too many for a block, and, with more than a few rows of X, or 16-bit weights, where blocks
// would be so low that reading X for each of them costs more than adding sums up. They share it too where a
// multiprocessor has one to two warps' output features, and there is room for two: of this launch, one of
// which ends while the other has loads under way; or, in a short one whose products take long, of this and
// the next. In a long one whose products take long a single block of twice the height, which brings half as
// much of X, is better, if the heights leave few multiprocessors idle.
Schedule ChooseSchedule(const GemmNode& node, const StreamImage& row) {
  constexpr int64_t kStepsWorthSharing = 16, kMostKWarps = 4, kFewRows = 8, kMostRowsOfTwo = 16;
  const GemmSpec& spec = node.spec;
  const int64_t multiprocessors = node.multiprocessors;
  const int64_t units = CeilDivide(spec.N, kWarpRows);
  const int64_t steps = CeilDivide(spec.K, StepFeatures(spec));
  Schedule schedule{1, 1, 1, 1, 1};
  while (schedule.cluster < 8 && 2 * units * schedule.cluster <= multiprocessors &&
         steps >= kStepsWorthSharing * schedule.cluster) {
    schedule.cluster *= 2;
  }
  const bool low = 2 * units > multiprocessors && units <= 3 * multiprocessors;
  const bool worth_sharing = low && steps >= 2 * kStepsWorthSharing;
  const bool long_products = row.most_rows > kFewRows;
  const bool costly = long_products && CodeBytes(spec) == 1, is_short = steps <= 2 * kMostTurns;
  const bool one_is_better = costly && !is_short && 2 * units > 3 * multiprocessors;
  const bool two_blocks = worth_sharing && units > multiprocessors && units <= 2 * multiprocessors &&
                          row.most_rows <= kMostRowsOfTwo && !one_is_better;
  const bool wide = CodeBytes(spec) == 2 && units <= multiprocessors;
  if (worth_sharing && (two_blocks || long_products || wide)) schedule.cluster = 2;
  if (two_blocks) {
    schedule.room = 2;
    schedule.at_once = costly && is_short ? 1 : 2;  // beside the next launch's
  }
  const int64_t tiles = std::max<int64_t>(1, schedule.at_once * multiprocessors / schedule.cluster);
  const int64_t waves = CeilDivide(units, tiles * MostRowWarps(spec, row, schedule.PartsApart()));
  schedule.row_warps = static_cast<int>(CeilDivide(units, tiles * waves));
  const int most_warps = row.image.threads / 32 / schedule.room - kOtherWarps;
  const int64_t own_steps = CeilDivide(steps, schedule.cluster);
  const int stage = schedule.Rows() * kRowBytes + OtherStageBytes(spec, row);
  const int most_stages = row.image.shared_bytes / 2 / stage;
  const auto fits = [&](const Schedule& larger) {
    const int parts = larger.PartsApart() ? larger.PartBytes(row.most_rows) : 0;
    return larger.k_warps * larger.row_warps <= most_warps && larger.k_warps <= own_steps &&
           larger.k_warps <= std::max(most_stages, kLoaders) &&
           kLoaders * stage + larger.ConstantBytes() + parts <= row.image.shared_bytes;
  };
  for (Schedule larger = schedule; larger.k_warps < kMostKWarps;) {
    larger.k_warps *= 2;
    if (!fits(larger)) break;
    schedule = larger;
  }
  return schedule;
}

class StreamKernel : public GemmKernel {
 public:
  StreamKernel(const GemmNode& node, const StreamImage& row, const Schedule& schedule)
      : node_(node),
        row_(row),
        kernel_(KernelOf(node.driver, row.image, node.device)),
        schedule_(schedule),
        blocks_(static_cast<unsigned>(CeilDivide(node.spec.N, schedule_.Rows()) * schedule_.cluster)) {
    SetProblem();
  }

  const char* Name() const override { return row_.image.name; }

  // Weights at the memory's speed, X from the second-level cache by every block but those that another hides,
  // and the start and the end.
  double Nanoseconds(int64_t M) const override {
    if (M > row_.most_rows) return kRefused;
    constexpr double kFixed = 2500, kWeightBytes = 4200, kXBytes = 5000, kMostOfABlock = 60;  // a nanosecond
    const double rate =
        std::min(kWeightBytes, kMostOfABlock * std::min<double>(blocks_, node_.multiprocessors));
    const double weights = static_cast<double>(node_.spec.N) * node_.spec.K * CodeBytes(node_.spec);
    const unsigned readers = blocks_ / (schedule_.cluster * schedule_.at_once);
    const double x = static_cast<double>(readers) * M * node_.spec.K * 2;
    return kFixed + row_.most_rows + weights / rate + x / kXBytes;
  }

  void Launch(const GemmCall& call) const override {
    Problem problem = problem_;
    problem.x = call.x;
    problem.residual = call.residual;
    problem.y = call.y;
    problem.M = static_cast<int32_t>(call.M);
    void* argument = &problem;
    node_.driver.Launch(kernel_.Get(), blocks_, schedule_.cluster, schedule_.Threads(), shared_bytes_,
                        call.stream, &argument, true);
  }

 private:
  void SetProblem();
  void SetSharedMemory();

  const GemmNode& node_;
  const StreamImage& row_;
  LazyKernel& kernel_;
  Schedule schedule_;
  unsigned blocks_;
  unsigned shared_bytes_ = 0;
  Problem problem_{};  // all but the call's own
};

void StreamKernel::SetProblem() {
  const GemmSpec& spec = node_.spec;
  constexpr int kUint8 = 0, kFloat16 = 6, kBfloat16 = 9, kSwizzle128 = 3;  // the driver's enumerators
  const int type = spec.format == Format::kDeft8  ? kUint8
                   : spec.format == Format::kHalf ? kFloat16
                                                  : kBfloat16;
  Problem& p = problem_;
  p.w = node_.driver.EncodeMatrix(node_.weight, type, CodeBytes(spec), spec.N, spec.K, spec.padded_K,
                                  schedule_.Rows(), StepFeatures(spec), kSwizzle128);
  p.scale = node_.scale;
  p.bias = node_.bias;
  p.kept = node_.kept;
  p.N = static_cast<int32_t>(spec.N);
  p.K = static_cast<int32_t>(spec.K);
  p.features = static_cast<int32_t>(spec.features);
  p.block_shift = spec.block_shift;
  const Decoding decoding = Decoding::ForTensorCores(spec);
  p.decode_shift = decoding.shift;
  p.decode_factor = decoding.factor;
  p.accumulator_scale = decoding.accumulator_scale;
  const Activation& activation = spec.activation;
  p.curve = activation.curve;
  p.gated = activation.gated;
  p.slope = activation.slope, p.offset = activation.offset;
  p.low = activation.low, p.high = activation.high;
  p.y_type = TypeCode(spec.y_type);
  p.row_warps = schedule_.row_warps;
  p.k_warps = schedule_.k_warps;
  p.cluster = schedule_.cluster;
  SetSharedMemory();
}

// Stages for half of a multiprocessor's memory, so that the next kernel's blocks can fill theirs while this
// one's are emptied; but no fewer than the warps that take turns at them. Of many stages a multiple of
// kLoaders is faster.
void StreamKernel::SetSharedMemory() {
  constexpr int kReserved = 512;  // of half the memory, for the hardware's own use
  const int constants = schedule_.ConstantBytes(), parts = schedule_.PartBytes(row_.most_rows);
  const int behind_ring = constants + (schedule_.PartsApart() ? parts : 0);
  const int stage = schedule_.Rows() * kRowBytes + OtherStageBytes(node_.spec, row_);
  const int64_t steps = CeilDivide(CeilDivide(node_.spec.K, StepFeatures(node_.spec)), schedule_.cluster);
  const bool half = schedule_.row_warps < 4 || schedule_.room > 1;
  const int most = half ? row_.image.shared_bytes / 2 - kReserved : row_.image.shared_bytes;
  const auto wanted = static_cast<int>(std::min<int64_t>(steps, (most - behind_ring) / stage));
  const int unit = schedule_.k_warps > 1 && wanted >= 2 * kLoaders ? kLoaders : schedule_.k_warps;
  const int stages = std::max(wanted / unit * unit, kLoaders);
  problem_.stages = stages;
  // higher blocks ask for X less often, and those with more steps fall out of step by themselves
  problem_.turns = schedule_.cluster > 1 && schedule_.row_warps <= 4 && steps <= kMostTurns;
  problem_.constants_offset = std::max(stages * stage, schedule_.PartsApart() ? 0 : parts);
  problem_.parts_offset = schedule_.PartsApart() ? problem_.constants_offset + constants : 0;
  shared_bytes_ = problem_.constants_offset + behind_ring;
}

}  // namespace

void StreamKernels(const GemmNode& node, GemmKernels& kernels) {
  if (!ServesFewRows(node.spec) || !Serves(node.spec)) return;
  const int architecture = kStreamImages.ArchitectureFor(node.capability);
  for (const StreamImage& row : kStreamImages) {
    if (row.image.architecture != architecture || row.x_type != node.spec.x_type) continue;
    if (row.w_type != node.spec.weight_type || !node.Admits(row.image.name)) continue;
    const Schedule schedule = ChooseSchedule(node, row);
    if (NeedsSumsApart(node.spec, node.spec.K / (schedule.k_warps * schedule.cluster))) continue;
    kernels.push_back(std::make_unique<StreamKernel>(node, row, schedule));
  }
}

}  // namespace deftonnx
