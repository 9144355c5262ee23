#include "conv_hopper.h"

#include <algorithm>

#include "conv_arguments.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int kTileRows = 128;
constexpr int kStep = 64;          // features a K step
constexpr int kStoreColumns = 64;  // what the copy engine writes at once
constexpr int kStoreRows = 64;
constexpr int kSwizzle128Bytes = 3;
constexpr int kFloat16Map = 6, kBfloat16Map = 9;  // the driver's enumerators

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Block {
  int32_t channel, tap;  // tap: offsets in pixels, rows << 16 | columns
};

// ConvParameters of the kernel.
struct ConvParameters {
  const void *blocks, *scale, *bias, *residual;
  int32_t M, N, outputs, steps, block_count, block_shift, rows, columns;
  int32_t row_stride, column_stride, row_start, column_start;
  int32_t tiles, column_tiles, group_tiles;
  EpilogueArguments epilogue;
};

// Channels that one copy of X brings: the kept blocks', or the most that divide a group's.
int64_t CopyChannels(const ConvSpec& spec) {
  int64_t channels = spec.block > 0 ? std::min<int64_t>(spec.block, kStep) : kStep;
  while (spec.GroupChannels() % channels != 0) channels /= 2;
  return channels;
}

std::vector<Block> Blocks(const ConvNode& node, int64_t channels) {
  const ConvSpec& spec = node.spec;
  std::vector<Block> blocks;
  for (int64_t g = 0; g < spec.group; ++g) {
    for (const FilterRun& run : FilterRuns(spec, node.kept.data(), g)) {
      const int64_t tap = run.row * spec.rows.dilation << 16 | run.column * spec.columns.dilation;
      for (int64_t c = 0; c < run.count; c += channels) {
        blocks.push_back({static_cast<int32_t>(run.channel + c), static_cast<int32_t>(tap)});
      }
    }
  }
  return blocks;
}

// What a tensor map in im2col mode can say of an axis: corners of 8 bits, steps of at most 8.
bool MapTakes(const Axis& axis) {
  const int64_t last = axis.pad_end - (axis.kernel - 1) * axis.dilation;
  return axis.pad_begin <= 128 && last >= -128 && last <= 127 && (axis.kernel - 1) * axis.dilation <= 255 &&
         axis.stride <= 8;
}

bool Serves(const ConvSpec& spec) {
  if (spec.x_type == ElementType::kFloat || spec.y_type != spec.x_type || spec.channels % 8 != 0 ||
      spec.N % 8 != 0)
    return false;
  if (CopyChannels(spec) < 8) return false;
  // the copy engine writes whole boxes: another group's outputs must not begin within one
  if (spec.group > 1 && spec.GroupOutputs() % kStoreColumns != 0) return false;
  return MapTakes(spec.rows) && MapTakes(spec.columns);
}

// What all tile sizes share.
struct SharedOperands {
  std::shared_ptr<const Weight16> weight;
  DeviceBuffer blocks;
  int64_t channels, block_count;

  explicit SharedOperands(const ConvNode& node)
      : weight(SharedWeight16(node)), channels(CopyChannels(node.spec)), block_count(node.spec.K / channels) {
    blocks = DeviceBuffer(node.driver, Blocks(node, channels));
  }
};

class HopperConv : public ConvKernel {
 public:
  HopperConv(const ConvNode& node, const ConvHopperImage& row, std::shared_ptr<const SharedOperands> operands)
      : node_(node),
        row_(row),
        kernel_(LoadKernel(node.driver, row.image, node.device)),
        operands_(std::move(operands)),
        map_type_(row.x_type == ElementType::kFloat16 ? kFloat16Map : kBfloat16Map),
        steps_(CeilDivide(operands_->block_count * operands_->channels, kStep)),
        group_tiles_(CeilDivide(node.spec.GroupOutputs(), row.columns)),
        weight_map_(Map(operands_->weight->values.data(), node.spec.N, node.spec.K, row.columns)) {}

  const char* Name() const override { return row_.image.name; }

  // Fitted to benchmarks/conv_speed.py on the H200.
  double Nanoseconds(const ConvShape& shape) override {
    const int64_t waves = CeilDivide(Tiles(shape), node_.multiprocessors);
    const double vectors = operands_->channels == 8 ? 430 : 0;  // the copy engine takes a row at a time
    const double step = std::max(row_.columns == 256 ? 620.0 : row_.columns == 128 ? 310.0 : 210.0, vectors);
    const double tile = row_.columns == 256 ? 3000 : 400;
    return 4000 + waves * (tile + steps_ * step);
  }

  void Launch(const ConvCall& call) override {
    const ConvSpec& s = node_.spec;
    const ConvShape& shape = call.shape;
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    int shift = 3;
    while (int64_t{1} << shift < operands_->channels) ++shift;
    const ConvParameters parameters{operands_->blocks.data(),
                                    operands_->weight->scale.data(),
                                    node_.bias,
                                    call.residual,
                                    narrow(shape.Pixels()),
                                    narrow(s.N),
                                    narrow(s.GroupOutputs()),
                                    narrow(steps_),
                                    narrow(operands_->block_count),
                                    shift,
                                    narrow(shape.out_rows),
                                    narrow(shape.out_columns),
                                    narrow(s.rows.stride),
                                    narrow(s.columns.stride),
                                    narrow(-s.rows.pad_begin),
                                    narrow(-s.columns.pad_begin),
                                    narrow(Tiles(shape)),
                                    narrow(group_tiles_ * s.group),
                                    narrow(group_tiles_),
                                    EpilogueArguments(s)};
    const TensorMap x = ImageMap(call), y = Map(call.y, shape.Pixels(), s.N, kStoreRows);
    const auto blocks = std::min<int64_t>(Tiles(shape), node_.multiprocessors);
    void* arguments[] = {const_cast<TensorMap*>(&x), const_cast<TensorMap*>(&weight_map_),
                         const_cast<TensorMap*>(&y), const_cast<ConvParameters*>(&parameters)};
    node_.driver.Launch(kernel_, static_cast<unsigned>(blocks), 1, row_.image.threads,
                        row_.image.shared_bytes, call.stream, arguments);
  }

 private:
  int64_t Tiles(const ConvShape& shape) const {
    return CeilDivide(shape.Pixels(), kTileRows) * group_tiles_ * node_.spec.group;
  }

  // A matrix that is read or written in boxes of 64 columns.
  TensorMap Map(const void* data, int64_t rows, int64_t columns, int box_rows) const {
    return node_.driver.EncodeMatrix(data, map_type_, 2, rows, columns, columns, box_rows, kStep,
                                     kSwizzle128Bytes);
  }

  TensorMap ImageMap(const ConvCall& call) const {
    const ConvSpec& s = node_.spec;
    const ConvShape& shape = call.shape;
    const auto last = [](const Axis& a) { return static_cast<int>(a.pad_end - (a.kernel - 1) * a.dilation); };
    const uint64_t sizes[] = {static_cast<uint64_t>(shape.batch), static_cast<uint64_t>(shape.in_rows),
                              static_cast<uint64_t>(shape.in_columns), static_cast<uint64_t>(s.channels)};
    const int swizzle = operands_->channels == 64   ? 3
                        : operands_->channels == 32 ? 2
                                                    : operands_->channels == 16;
    return node_.driver.EncodeIm2col(
        call.x, map_type_, sizes,
        {static_cast<int>(-s.rows.pad_begin), static_cast<int>(-s.columns.pad_begin)},
        {last(s.rows), last(s.columns)},
        {static_cast<uint32_t>(s.rows.stride), static_cast<uint32_t>(s.columns.stride)},
        static_cast<uint32_t>(operands_->channels), kTileRows, swizzle);
  }

  const ConvNode& node_;
  const ConvHopperImage& row_;
  CUkernel kernel_;
  std::shared_ptr<const SharedOperands> operands_;
  int map_type_;
  int64_t steps_, group_tiles_;
  TensorMap weight_map_;
};

}  // namespace

void HopperConvKernels(const ConvNode& node, ConvKernels& kernels) {
  if (!Serves(node.spec)) return;
  const int architecture = kConvHopperImages.ArchitectureFor(node.capability);
  std::shared_ptr<const SharedOperands> operands;
  for (const ConvHopperImage& row : kConvHopperImages) {
    if (row.image.architecture != architecture || node.capability != 90 || row.x_type != node.spec.x_type)
      continue;
    if (!node.Admits(row.image.name)) continue;
    if (operands == nullptr) operands = std::make_shared<SharedOperands>(node);
    kernels.push_back(std::make_unique<HopperConv>(node, row, operands));
  }
}

}  // namespace deftonnx
