#include "gemm_hopper.h"

#include <algorithm>
#include <limits>

#include "gemm_arguments.h"
#include "hopper_problem.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int kStepK = 64;
constexpr int kVector = 8;  // features of 16 bytes
constexpr int kPairRows = 1, kPairColumns = 2;
constexpr int kDenseSide = 192;  // of tiles that do not serve kept blocks
constexpr int kGroup = 8;        // row tiles that are walked together
// How much longer the end of a tile takes than with a clamp, where W is the left operand and it does not end
// in registers.
constexpr double kCostlyColumns = 5;
// Of an end that the other warpgroup's products hide, what they are longer for it.
constexpr double kHiddenEnd = 0.22;
// The copy engine takes so many ns for a row of a box, however narrow; half of X's come from the other block
// where a pair shares them.
constexpr double kBoxRow = 1.25, kSharedBoxRow = 1.1;
// So many ns longer takes a K step where blocks of X are kept, unless a pair shares X.
constexpr double kKeptStep = 2;
// So many ns for one that lies beyond the last of X, where boxes are as high as tiles: where a pair shares X,
// unless the other row tiles hide it, or blocks of it are kept. Of the latter, only tiles of more than
// kFewRows rows with K shared out are told apart by it: those of fewer leave less empty.
constexpr double kEmptyRow = 3.5;
constexpr int kFewRows = 64, kSomeRows = 128;
// A nanosecond, of W from device memory, as these kernels read it: with more rows of X than kSomeRows, with
// no more, and where one row of tiles is all, where something is lost at the start.
constexpr double kWeightBytes = 2650, kSomeRowsBytes = 2800, kOnceBytes = 3500, kOnceStart = 1700;
// Of the time of a K step, what is spared by the part of the GPU that is idle: of the power, which limits the
// clock, and of the L2 cache the others have more. Of tiles of less than kLargeTile, and where K is shared
// out, less, and of one round alone. And what a block has when it is alone on a multiprocessor made for two.
constexpr double kIdle = 0.5, kIdleSmall = 0.16, kAlone = 0.67;
constexpr int kLargeTile = 64 * 128;
constexpr double kMultiplyAdds = 2048 * 1.98;  // a nanosecond, of a multiprocessor at its highest clock

bool Serves(const GemmSpec& spec) {
  const bool half = spec.format == Format::kHalf && spec.x_type == ElementType::kFloat16;
  const bool bfloat = spec.format == Format::kDeft16 && spec.x_type == ElementType::kBfloat16;
  if (!(half || bfloat) || NeedsSumsApart(spec, spec.K)) return false;
  return spec.features % kVector == 0 && (spec.block == 0 || spec.block >= kVector);
}

class HopperKernel : public GemmKernel {
 public:
  HopperKernel(const GemmNode& node, const HopperImage& row)
      : node_(node), row_(row), kernel_(KernelOf(node.driver, row.image, node.device)), problem_(node) {
    const GemmSpec& spec = node.spec;
    int columns = row.pair == kPairRows ? row.block_n / 2 : row.block_n;
    if (row.transposed && row.pair != kPairRows) problem_.w_box = columns = BoxRows(spec.N, row.block_n);
    problem_.w = Map(node.weight, spec.N, spec.padded_K, columns, kStepK, 128);
    problem_.kept = node.kept;
    problem_.K = static_cast<int32_t>(spec.K);
    problem_.features = static_cast<int32_t>(spec.features);
    problem_.block_shift = spec.block_shift;
    const bool narrow = spec.block != 0;
    problem_.box_columns = narrow ? static_cast<int32_t>(std::min<int64_t>(spec.block, kStepK)) : kStepK;
    problem_.pair = row.pair;
    problem_.splits = row.splits;
    problem_.group = kGroup;
  }

  const char* Name() const override { return row_.image.name; }

  double Nanoseconds(int64_t M) const override {
    const int64_t cells = Cells(M), steps = Steps();
    if (cells > std::numeric_limits<int32_t>::max() / 16) return kRefused;
    const int64_t clusters = Clusters();
    const int64_t rounds = CeilDivide(cells, clusters);
    const bool alone = row_.blocks_per_multiprocessor == 2 && cells * ClusterSize() <= node_.multiprocessors;
    const double idle = 1 - static_cast<double>(cells) / static_cast<double>(clusters * rounds);
    const bool large = row_.block_m * row_.block_n >= kLargeTile && row_.splits == 1;
    const double spared = large ? kIdle : rounds == 1 ? kIdleSmall : 0;
    double step_ns = std::max(row_.step_ns * (alone ? kAlone : 1) * (1 - spared * idle),
                              row_.block_m * row_.block_n * kStepK / kMultiplyAdds);
    const bool shared = row_.pair == kPairColumns;
    if (node_.spec.block != 0 && !shared) step_ns += kKeptStep;
    const double row_ns = shared ? kSharedBoxRow : kBoxRow;
    step_ns = std::max(step_ns, row_.block_m * (kStepK / problem_.box_columns - 1) * row_ns);
    const double product_ns = CeilDivide(steps, row_.splits) * step_ns;
    const bool columns = row_.transposed && !EndsInRegisters(node_.spec, row_.type);
    const double end_ns = row_.tile_ns * (columns ? kCostlyColumns : EndFactor(node_.spec, row_.type));
    const double turns_ns = std::max(product_ns + kHiddenEnd * end_ns, end_ns / 2);
    const double tiles_ns = row_.turns ? rounds * turns_ns + end_ns : rounds * (product_ns + end_ns);
    // where reading W is what takes time, the less there is to do beside it the better
    return row_.fixed_ns + std::max(tiles_ns, WeightNanoseconds(M)) + 0.05 * tiles_ns +
           EmptyRows(M) * kEmptyRow;
  }

  void Launch(const GemmCall& call) const override {
    const GemmSpec& spec = node_.spec;
    HopperProblem problem = problem_;
    int rows = row_.pair == kPairColumns ? row_.block_m / 2 : row_.block_m;
    if (row_.pair != kPairColumns && spec.block == 0) problem.x_box = rows = BoxRows(call.M, row_.block_m);
    problem.x = Map(call.x, call.M, spec.features, rows, problem.box_columns, 2 * problem.box_columns);
    const bool adds = row_.splits == 1 && !row_.transposed;  // a residual, in registers
    const bool boxes = adds ? EndsInBoxes(spec, row_.type) : EndsInRegisters(spec, row_.type);
    problem.SetOutput(node_, call, boxes, row_.OutputBoxRows());
    void* arguments[] = {&problem};
    node_.driver.Launch(kernel_.Get(), static_cast<unsigned>(Launched(Cells(call.M)) * ClusterSize()),
                        ClusterSize(), row_.image.threads, row_.image.shared_bytes, call.stream, arguments,
                        true);
  }

 private:
  TensorMap Map(const void* data, int64_t rows, int64_t columns, int box_rows, int box_columns,
                int box_bytes) const {
    const int type = row_.type == ElementType::kFloat16 ? kMapFloat16 : kMapBfloat16;
    return node_.driver.EncodeMatrix(data, type, 2, rows, columns, columns, box_rows, box_columns,
                                     SwizzleOf(box_bytes));
  }

  double WeightNanoseconds(int64_t M) const {
    const double bytes = 2.0 * node_.spec.N * node_.spec.K;
    if (M > kSomeRows) return bytes / kWeightBytes;
    const double ns = bytes / kSomeRowsBytes;
    return M <= row_.block_m ? std::min(ns, kOnceStart + bytes / kOnceBytes) : ns;
  }

  // Rows beyond the last of X that a block loads with its last row tile.
  double EmptyRows(int64_t M) const {
    const bool shared = row_.pair == kPairColumns, kept = node_.spec.block != 0;
    if (shared ? !kept && M > row_.block_m : !kept || row_.block_m <= kFewRows || row_.splits == 1) return 0;
    const int64_t rows = CeilDivide(M, row_.block_m) * row_.block_m;
    return static_cast<double>((rows - M) * CeilDivide(Steps(), row_.splits)) / (shared ? 2 : 1);
  }

  int64_t Steps() const { return CeilDivide(node_.spec.K, kStepK); }
  unsigned ClusterSize() const { return (row_.pair ? 2 : 1) * row_.splits; }
  int64_t Clusters() const {  // that run at once
    // clusters of more than two do not fill every part of the GPU that they must not leave
    const int64_t usable = ClusterSize() > 2 ? node_.multiprocessors * 9 / 10 : node_.multiprocessors;
    return std::max<int64_t>(1, usable * row_.blocks_per_multiprocessor / ClusterSize());
  }
  // Clusters that are launched. Where two blocks fit a multiprocessor, the next kernel's blocks come while
  // this one's run: one of each everywhere, so that no multiprocessor gets two of one kernel, needs blocks
  // with nothing to do.
  int64_t Launched(int64_t cells) const {
    const int64_t all = node_.multiprocessors / ClusterSize();
    if (row_.blocks_per_multiprocessor > 1 && ClusterSize() <= 2 && cells <= all) return all;
    return row_.splits > 1 ? cells : std::min(cells, Clusters());
  }
  int64_t Cells(int64_t M) const {
    return CeilDivide(M, row_.block_m * (row_.pair == kPairRows ? 2 : 1)) *
           CeilDivide(node_.spec.N, row_.block_n * (row_.pair == kPairColumns ? 2 : 1));
  }

  const GemmNode& node_;
  const HopperImage& row_;
  LazyKernel& kernel_;
  HopperProblem problem_;  // what does not change between runs
};

}  // namespace

void HopperKernels(const GemmNode& node, GemmKernels& kernels) {
  if (!Serves(node.spec)) return;
  const int architecture = kHopperImages.ArchitectureFor(node.capability);
  const int64_t steps = CeilDivide(node.spec.K, kStepK);
  for (const HopperImage& row : kHopperImages) {
    // machine code for sm_90a runs nowhere else
    if (row.image.architecture != architecture || architecture != node.capability) continue;
    if (row.type != node.spec.x_type || row.splits > steps || !node.Admits(row.image.name)) continue;
    // their kernels have been run with all features only
    const bool dense = row.transposed || std::max(row.block_m, row.block_n) == kDenseSide;
    if (dense && node.spec.block != 0) continue;
    kernels.push_back(std::make_unique<HopperKernel>(node, row));
  }
}

}  // namespace deftonnx
