#include "conv_resident.h"

#include <algorithm>

#include "gemm_arguments.h"
#include "hopper_problem.h"
#include "hopper_windows.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int kStep = 64;       // channels a K step
constexpr int kMostSteps = 32;  // a lane of the warp that loads X knows one each
constexpr int kVector = 8;      // outputs of 16 bytes
constexpr int kTileRows = 64;
constexpr int kRowBytes = 128;  // of a K step
constexpr int kStageBytes = kTileRows * kRowBytes;
constexpr int kBarrierBytes = 8;
constexpr int kLeastStages = 5;     // Y takes two at most
constexpr double kCostlyEnd = 1.5;  // the end of a tile with a residual, over one without
constexpr double kBytes = 3500;     // of device memory, a nanosecond

// Resident of kernels/conv_resident.cu.
struct Resident {
  TensorMap residual;
  int32_t stages, column_blocks;
};

// Stages that there is room for beside W.
int64_t Stages(const ConvSpec& spec, const ConvResidentImage& row) {
  const int64_t w = spec.K / kStep * (row.block_n * kRowBytes + kBarrierBytes);
  const int64_t turns = row.warpgroups * kBarrierBytes;
  return (row.image.shared_bytes - w - turns) / (kStageBytes + 2 * kBarrierBytes);
}

bool Serves(const ConvSpec& spec) {
  if (spec.x_type == ElementType::kFloat || spec.y_type != spec.x_type || spec.N % kVector != 0) return false;
  if (spec.pool != 1) return false;
  if (spec.GroupChannels() % kStep != 0 || spec.block % kStep != 0 || spec.K > kMostSteps * kStep)
    return false;
  return MapTakes(spec.rows) && MapTakes(spec.columns);
}

// A tile has the outputs of one group.
bool Serves(const ConvSpec& spec, const ConvResidentImage& row) {
  if (spec.group > 1 && spec.GroupOutputs() % row.block_n != 0) return false;
  return Stages(spec, row) >= kLeastStages;
}

// Every group's K steps, in W's order.
std::vector<WindowBlock> Steps(const ConvNode& node) {
  const ConvSpec& spec = node.spec;
  std::vector<WindowBlock> steps;
  for (int64_t g = 0; g < spec.group; ++g) {
    for (const FilterRun& run : FilterRuns(spec, node.kept.data(), g)) {
      const int64_t tap = run.row * spec.rows.dilation << 16 | run.column * spec.columns.dilation;
      for (int64_t c = 0; c < run.count; c += kStep) {
        steps.push_back({static_cast<int32_t>(run.channel + c), static_cast<int32_t>(tap)});
      }
    }
  }
  return steps;
}

class ResidentConv : public ConvKernel {
 public:
  ResidentConv(const ConvNode& node, const ConvResidentImage& row, std::shared_ptr<const Weight16> weight,
               std::shared_ptr<const DeviceBuffer> steps)
      : node_(node),
        row_(row),
        weight_(std::move(weight)),
        steps_(std::move(steps)),
        kernel_(KernelOf(node.driver, row.image, node.device)),
        columns_(CeilDivide(node.spec.N, row.block_n)),
        problem_(node.spec, weight_->scale.data(), node.bias) {
    problem_.w = Map(weight_->values.data(), node.spec.N, node.spec.K, row.block_n);
    problem_.K = static_cast<int32_t>(node.spec.K);
  }

  const char* Name() const override { return row_.image.name; }

  double Nanoseconds(const ConvShape& shape) override {
    const ConvSpec& spec = node_.spec;
    const int64_t rounds = CeilDivide(RowTiles(shape), ColumnBlocks(shape));
    const double products = spec.K / kStep * row_.step_ns;
    const double end = row_.tile_ns * (spec.has_residual ? kCostlyEnd : 1);
    const double tiles = rounds * std::max(products, (products + end) / row_.warpgroups) + end;
    const double y = 1.0 * shape.Pixels() * spec.N * (spec.has_residual ? 2 : 1);
    return row_.fixed_ns + std::max(tiles, 2 * (Inputs(shape) + y) / kBytes) + 0.05 * tiles;
  }

  void Launch(const ConvCall& call) override {
    const ConvSpec& spec = node_.spec;
    const int64_t pixels = call.shape.Pixels(), blocks = ColumnBlocks(call.shape);
    HopperProblem problem = problem_;
    problem.x = WindowMap(node_, call, kStep, kTileRows);
    problem.SetOutput(spec, node_.driver, pixels, call.y, call.residual, EndsInBoxes(spec, row_.type));
    Windows windows{steps_->data(), static_cast<int32_t>(spec.K / kStep), WindowGrid(spec, call.shape)};
    Resident resident{problem.y, static_cast<int32_t>(Stages(spec, row_)), static_cast<int32_t>(blocks)};
    if (problem.by_box && call.residual != nullptr) {
      resident.residual = Map(call.residual, pixels, spec.N, kTileRows);
    }
    void* arguments[] = {&problem, &windows, &resident};
    node_.driver.Launch(kernel_.Get(), static_cast<unsigned>(columns_ * blocks), 1, row_.image.threads,
                        row_.image.shared_bytes, call.stream, arguments, true);
  }

 private:
  static int64_t RowTiles(const ConvShape& shape) { return CeilDivide(shape.Pixels(), kTileRows); }
  // Blocks that share out the rows of a column of tiles.
  int64_t ColumnBlocks(const ConvShape& shape) const {
    return std::min(RowTiles(shape), std::max<int64_t>(1, node_.multiprocessors / columns_));
  }
  // Elements of X that are read: filters of one tap see the pixels of Y alone.
  double Inputs(const ConvShape& shape) const {
    const ConvSpec& spec = node_.spec;
    if (spec.Taps() == 1) return 1.0 * shape.Pixels() * spec.group * spec.K;
    return 1.0 * shape.batch * shape.in_rows * shape.in_columns * spec.channels;
  }
  // A matrix that is read in boxes of 64 columns.
  TensorMap Map(const void* data, int64_t rows, int64_t columns, int box_rows) const {
    const int type = row_.type == ElementType::kFloat16 ? kMapFloat16 : kMapBfloat16;
    return node_.driver.EncodeMatrix(data, type, 2, rows, columns, columns, box_rows, kStep,
                                     SwizzleOf(kRowBytes));
  }

  const ConvNode& node_;
  const ConvResidentImage& row_;
  std::shared_ptr<const Weight16> weight_;
  std::shared_ptr<const DeviceBuffer> steps_;
  LazyKernel& kernel_;
  int64_t columns_;        // of tiles
  HopperProblem problem_;  // what does not change between runs
};

}  // namespace

void ResidentConvKernels(const ConvNode& node, ConvKernels& kernels) {
  if (!Serves(node.spec)) return;
  const int architecture = kConvResidentImages.ArchitectureFor(node.capability);
  std::shared_ptr<const DeviceBuffer> steps;
  for (const ConvResidentImage& row : kConvResidentImages) {
    // machine code for sm_90a runs nowhere else
    if (row.image.architecture != architecture || architecture != node.capability) continue;
    if (row.type != node.spec.x_type || !node.Admits(row.image.name) || !Serves(node.spec, row)) continue;
    if (steps == nullptr) steps = std::make_shared<const DeviceBuffer>(node.driver, Steps(node));
    kernels.push_back(std::make_unique<ResidentConv>(node, row, SharedWeight16(node), steps));
  }
}

}  // namespace deftonnx
