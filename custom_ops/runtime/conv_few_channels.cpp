#include "conv_few_channels.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>

#include "conv_arguments.h"
#include "gemm_arguments.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

// As in the kernel.
constexpr int64_t kTilePixels = 256;
constexpr int64_t kTiles = 8;
constexpr int64_t kFeatures = 64;
constexpr int64_t kStepPairs = 8;
constexpr int64_t kStepBytes = kTiles * 32 * 8 + kStepPairs * 8;
constexpr int64_t kLineBytes = kFeatures * 8;

constexpr int64_t kMostFeatures = 1024;
// Seen on the H200: of a multiprocessor, a product of a warp; of the device's memory.
constexpr double kProductNs = 14, kTileNs = 900, kBytes = 3000;

// Parameters of the kernel.
struct Parameters {
  const void *x, *weight, *pairs, *lines, *residual;
  void* y;
  int32_t steps, parts, N;
  int32_t channels, in_rows, in_columns, out_rows, out_columns;
  int32_t row_stride, column_stride, row_start, column_start;
  int32_t column_shift, patch_rows, pitch, shift, odd, aligned;
  int32_t row_tiles, column_tiles, tiles;
  EpilogueArguments epilogue;
};

struct Pair {
  int32_t place;  // rows of the patch << 16 | words
  uint32_t halves;
};

struct Operands {
  int64_t steps = 0, parts = 0;
  DeviceBuffer weight, pairs, lines;
};

// Values by which a patch begins before the first that the filter sees, so that it begins at a word of X.
int64_t Shift(const ConvSpec& spec) { return spec.columns.pad_begin * spec.channels % 2; }

// Where feature k of W lies in a patch: its row and its value within the row.
std::vector<std::pair<int64_t, int64_t>> Places(const ConvNode& node) {
  const ConvSpec& spec = node.spec;
  std::vector<std::pair<int64_t, int64_t>> places;
  for (const FilterRun& run : FilterRuns(spec, node.kept.data(), 0)) {
    for (int64_t c = run.channel; c < run.channel + run.count; ++c) {
      const int64_t value = run.column * spec.columns.dilation * spec.channels + c;
      places.push_back({run.row * spec.rows.dilation, value + Shift(spec)});
    }
  }
  return places;
}

// The output feature that column j of product t holds: a lane's columns of four products are neighbours.
int64_t FeatureOf(int64_t t, int64_t j) { return t / 4 * 32 + j / 2 * 8 + t % 4 * 2 + j % 2; }

// The words of the patch that the filter sees, W's values in their order as lanes hold right operands.
Operands MakeOperands(const ConvNode& node) {
  const ConvSpec& spec = node.spec;
  std::map<std::pair<int64_t, int64_t>, std::array<int64_t, 2>> words;  // place: the features there, or -1
  const auto places = Places(node);
  for (size_t k = 0; k < places.size(); ++k) {
    const auto [row, value] = places[k];
    auto& features = words.insert({{row, value / 2}, {-1, -1}}).first->second;
    features[value % 2] = static_cast<int64_t>(k);
  }
  Operands operands;
  operands.steps = CeilDivide(words.size(), kStepPairs);
  operands.parts = CeilDivide(spec.N, kFeatures);
  std::vector<Pair> pairs(operands.steps * kStepPairs, {0, 0});
  std::vector<std::array<int64_t, 2>> features(pairs.size(), {-1, -1});
  size_t count = 0;
  for (const auto& [place, two] : words) {
    pairs[count] = {static_cast<int32_t>(place.first << 16 | place.second),
                    (two[0] < 0 ? 0 : 0xffffu) | (two[1] < 0 ? 0 : 0xffff0000u)};
    features[count++] = two;
  }
  const HostWeight16& weight = RoundedWeight16(node);
  std::vector<uint16_t> values;
  values.reserve(operands.parts * operands.steps * kTiles / 2 * 32 * 8);
  for (int64_t part = 0; part < operands.parts; ++part) {
    for (int64_t step = 0; step < operands.steps; ++step) {
      for (int64_t two_tiles = 0; two_tiles < kTiles / 2; ++two_tiles) {
        for (int64_t lane = 0; lane < 32; ++lane) {
          for (int64_t i = 0; i < 4; ++i) {  // 2 products, 2 registers each
            const int64_t n = part * kFeatures + FeatureOf(2 * two_tiles + i / 2, lane / 4);
            for (const int64_t k : features[step * kStepPairs + lane % 4 + i % 2 * 4]) {
              values.push_back(k < 0 || n >= spec.N ? 0 : weight.values[n * spec.K + k]);
            }
          }
        }
      }
    }
  }
  std::vector<float> bias(spec.N);
  node.driver.CopyToHost(bias.data(), node.bias, bias.size() * sizeof(float));
  std::vector<std::array<float, 2>> lines(operands.parts * kFeatures);
  for (int64_t n = 0; n < spec.N; ++n) lines[n] = {weight.scale[n], bias[n]};
  auto [on_device, pairs_there, lines_there] = DeviceBuffer::Together(node.driver, values, pairs, lines);
  operands.weight = std::move(on_device);
  operands.pairs = std::move(pairs_there);
  operands.lines = std::move(lines_there);
  return operands;
}

// How an image is cut into tiles, and a tile's patch.
struct Cut {
  int64_t column_shift = 0, row_tiles = 0, column_tiles = 0;
  int64_t patch_rows = 0, pitch = 0;

  int64_t Tiles() const { return row_tiles * column_tiles; }
  int64_t PatchBytes() const { return 2 * 4 * patch_rows * pitch; }  // of two patches
};

Cut CutOf(const ConvSpec& spec, const ConvShape& shape, int64_t column_shift) {
  const int64_t columns = int64_t{1} << column_shift, rows = kTilePixels >> column_shift;
  const auto seen = [](const Axis& a, int64_t outputs) {
    return (outputs - 1) * a.stride + (a.kernel - 1) * a.dilation + 1;
  };
  Cut cut;
  cut.column_shift = column_shift;
  cut.row_tiles = CeilDivide(shape.out_rows, rows);
  cut.column_tiles = CeilDivide(shape.out_columns, columns);
  cut.patch_rows = seen(spec.rows, rows);
  // a pixel that begins at an odd value reads a word more
  cut.pitch = (Shift(spec) + seen(spec.columns, columns) * spec.channels) / 2 + 2;
  return cut;
}

// The cut of fewest values to load, among those whose patches are small enough; none if Tiles() is 0.
Cut BestCut(const ConvSpec& spec, const ConvShape& shape, int64_t most_patch_bytes) {
  Cut best;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t shift = 1; spec.pool << shift <= kTilePixels; ++shift) {
    const Cut cut = CutOf(spec, shape, shift);
    // a tile costs what it computes, and what it loads
    const int64_t cost = cut.Tiles() * (kTilePixels * 16 + cut.patch_rows * cut.pitch);
    if (cut.PatchBytes() <= most_patch_bytes && cost < least) least = cost, best = cut;
  }
  return best;
}

class FewChannelsConv : public ConvKernel {
 public:
  FewChannelsConv(const ConvNode& node, const ConvFewChannelsImage& row)
      : node_(node),
        row_(row),
        kernel_(KernelOf(node.driver, row.image, node.device)),
        operands_(MakeOperands(node)) {}

  const char* Name() const override { return row_.image.name; }

  double Nanoseconds(const ConvShape& shape) override {
    const Cut cut = CutFor(shape);
    if (cut.Tiles() == 0) return kConvRefused;
    const int64_t tiles = cut.Tiles() * shape.batch * operands_.parts;
    if (tiles > std::numeric_limits<int32_t>::max() / kTilePixels) return kConvRefused;
    const int64_t together = BlocksPerMultiprocessor(cut);
    const int64_t rounds = CeilDivide(tiles, node_.multiprocessors * together);
    const double tile = kTileNs + kProductNs * together * operands_.steps * kTiles;
    const double bytes = 2.0 * shape.Pixels() * node_.spec.N * (node_.spec.has_residual ? 2 : 1) /
                         (node_.spec.pool * node_.spec.pool);
    return 4000 + std::max(rounds * tile, bytes / kBytes);
  }

  bool ServesEveryShape() const override { return false; }

  void Launch(const ConvCall& call) override {
    const ConvSpec& s = node_.spec;
    const ConvShape& shape = call.shape;
    const Cut cut = CutFor(shape);
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    const int64_t tiles = cut.Tiles() * shape.batch;
    const Parameters parameters{call.x,
                                operands_.weight.data(),
                                operands_.pairs.data(),
                                operands_.lines.data(),
                                call.residual,
                                call.y,
                                narrow(operands_.steps),
                                narrow(operands_.parts),
                                narrow(s.N),
                                narrow(s.channels),
                                narrow(shape.in_rows),
                                narrow(shape.in_columns),
                                narrow(shape.out_rows),
                                narrow(shape.out_columns),
                                narrow(s.rows.stride),
                                narrow(s.columns.stride),
                                narrow(-s.rows.pad_begin),
                                narrow(-s.columns.pad_begin),
                                narrow(cut.column_shift),
                                narrow(cut.patch_rows),
                                narrow(cut.pitch),
                                narrow(Shift(s)),
                                s.columns.stride * s.channels % 2 != 0,
                                shape.in_columns * s.channels % 2 == 0,
                                narrow(cut.row_tiles),
                                narrow(cut.column_tiles),
                                narrow(tiles),
                                EpilogueArguments(s)};
    const int64_t most = CeilDivide(node_.multiprocessors * BlocksPerMultiprocessor(cut), operands_.parts);
    const int64_t blocks = std::min(tiles, most) * operands_.parts;
    void* arguments[] = {const_cast<Parameters*>(&parameters)};
    node_.driver.Launch(kernel_.Get(), static_cast<unsigned>(blocks), 1, row_.image.threads,
                        static_cast<unsigned>(OperandBytes() + cut.PatchBytes()), call.stream, arguments,
                        CanStartEarly(row_.image.architecture));
  }

 private:
  int64_t OperandBytes() const { return operands_.steps * kStepBytes + kLineBytes; }
  // Two, where a multiprocessor has the memory; the system takes a KiB of each block.
  int64_t BlocksPerMultiprocessor(const Cut& cut) const {
    return 2 * (OperandBytes() + cut.PatchBytes() + 1024) <= row_.image.shared_bytes + 1024 ? 2 : 1;
  }
  Cut CutFor(const ConvShape& shape) const {
    return BestCut(node_.spec, shape, row_.image.shared_bytes - OperandBytes());
  }

  const ConvNode& node_;
  const ConvFewChannelsImage& row_;
  LazyKernel& kernel_;
  Operands operands_;
};

bool Serves(const ConvSpec& spec) {
  if (spec.x_type == ElementType::kFloat || spec.y_type != spec.x_type || spec.group != 1) return false;
  return spec.N % 8 == 0 && spec.K <= kMostFeatures && spec.channels % 8 != 0;
}

}  // namespace

void FewChannelsConvKernels(const ConvNode& node, ConvKernels& kernels) {
  if (!Serves(node.spec)) return;
  const int architecture = kConvFewChannelsImages.ArchitectureFor(node.capability);
  for (const ConvFewChannelsImage& row : kConvFewChannelsImages) {
    if (row.image.architecture != architecture || row.x_type != node.spec.x_type) continue;
    if (row.pooled != (node.spec.pool > 1)) continue;
    if (node.Admits(row.image.name)) kernels.push_back(std::make_unique<FewChannelsConv>(node, row));
  }
}

}  // namespace deftonnx
