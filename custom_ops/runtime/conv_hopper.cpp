#include "conv_hopper.h"

#include <algorithm>
#include <utility>

#include "conv_groups.h"
#include "gemm_arguments.h"
#include "hopper_problem.h"
#include "hopper_windows.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int kStep = 64;          // features a K step
constexpr int kVector = 8;         // channels of 16 bytes
constexpr int kSector = 16;        // channels of 32 bytes, the least that device memory gives
constexpr int kLeastColumns = 64;  // of a tile
constexpr int kMostTogether = 32;  // groups
constexpr int kMostTaps = 31;      // that a list of vectors can tell apart; the next number is that of zeros
constexpr int kMostLines = 4;      // of X that are looked for to fill a K step
constexpr int kLineBytes = 128;
constexpr int kCacheBytes = 24 << 10;  // that the stages of a tile leave, about
constexpr int kPairRows = 1, kPairColumns = 2;
constexpr int kGroup = 8;           // row tiles that are walked together
constexpr double kBoxRow = 1.25;    // nanoseconds of the copy engine for a row of a box
constexpr double kCostlyEnd = 1.5;  // the end of a tile with a residual, over one without
constexpr double kBytes = 3500;     // of device memory, a nanosecond

struct Vector {
  int32_t offset, tap;  // see Vectors of kernels/hopper_vectors.cuh
};

// Vectors of kernels/hopper_vectors.cuh.
struct Vectors {
  const void *x, *list;
  int32_t count;
  WindowGrid grid;
  int32_t in_rows, in_columns, pixel, kernel_rows, kernel_columns, row_dilation, column_dilation;
};

// Channels that one copy of X brings: the kept blocks', or the most that divide a group's.
int64_t CopyChannels(const ConvSpec& spec) {
  int64_t channels = spec.block > 0 ? std::min<int64_t>(spec.block, kStep) : kStep;
  while (spec.GroupChannels() % channels != 0) channels /= 2;
  return channels;
}

// What one copy of X brings, and the features of W that it is multiplied by.
struct Copy {
  int64_t channel, row, column;  // of X; of the tap
  int64_t feature;
};

// Neighbouring copies of a list: those of one line of X, 64 channels, at one tap.
struct LineCopies {
  size_t first, count;
};

// Adds to `picked` the numbers of at most `most` lines, from `from` on, that have `wanted` copies together,
// if there are such lines.
bool PickLines(const std::vector<LineCopies>& lines, size_t from, size_t wanted, int most,
               std::vector<size_t>& picked) {
  if (wanted == 0) return true;
  for (size_t i = from; most > 0 && i < lines.size(); ++i) {
    if (lines[i].count > wanted) continue;
    picked.push_back(i);
    if (PickLines(lines, i + 1, wanted - lines[i].count, most - 1, picked)) return true;
    picked.pop_back();
  }
  return false;
}

// Those of the lines that fill the rest of a K step, as few as can be; else the first line.
std::vector<size_t> NextLines(const std::vector<LineCopies>& lines, size_t rest) {
  for (int most = 1; most <= kMostLines; ++most) {
    std::vector<size_t> picked;
    if (PickLines(lines, 0, rest, most, picked)) return picked;
  }
  return {0};
}

// Whether the rows of X that a filter's rows see at once, of one line of channels, find no room in the
// first-level cache.
bool AreWide(const ConvSpec& spec, int64_t columns) {
  return spec.rows.kernel * columns * kLineBytes > kCacheBytes;
}

// Short copies, `step` of them a K step, in the order in which threads read them with the least effort. The
// taps of a line follow each other: neighbouring windows see the same pixels, which are found in the
// first-level cache while the line is there. Among them, those come together that fill K steps with the
// fewest lines, since every line that an instruction touches takes time. Where X's images are known to be
// wide, that is for the taps of a row.
std::vector<Copy> OrderedByLines(std::vector<Copy> copies, size_t step, bool wide) {
  const auto place = [&](const Copy& copy) { return std::pair(copy.channel / kStep, wide ? copy.row : 0); };
  std::stable_sort(copies.begin(), copies.end(),
                   [&](const Copy& a, const Copy& b) { return place(a) < place(b); });
  std::vector<Copy> ordered;
  for (size_t next = 0; next < copies.size();) {
    std::vector<LineCopies> lines;
    for (const auto here = place(copies[next]); next < copies.size() && place(copies[next]) == here; ++next) {
      const bool same_tap = !lines.empty() && copies[next].row == copies[next - 1].row &&
                            copies[next].column == copies[next - 1].column;
      if (!same_tap) lines.push_back({next, 0});
      ++lines.back().count;
    }
    while (!lines.empty()) {
      const std::vector<size_t> picked = NextLines(lines, step - ordered.size() % step);
      for (size_t i : picked) {
        const auto first = copies.begin() + lines[i].first;
        ordered.insert(ordered.end(), first, first + lines[i].count);
      }
      for (auto i = picked.rbegin(); i != picked.rend(); ++i) lines.erase(lines.begin() + *i);
    }
  }
  return ordered;
}

// One group's copies, in the order of multiplication.
std::vector<Copy> Copies(const ConvNode& node, int64_t channels, int64_t g) {
  const ConvSpec& spec = node.spec;
  std::vector<Copy> copies;
  for (const FilterRun& run : FilterRuns(spec, node.kept.data(), g)) {
    for (int64_t c = 0; c < run.count; c += channels) {
      const int64_t feature = static_cast<int64_t>(copies.size()) * channels;
      copies.push_back({run.channel + c, run.row, run.column, feature});
    }
  }
  if (channels == kStep || spec.block == 0) return copies;
  return OrderedByLines(std::move(copies), kStep / channels, AreWide(spec, node.known_columns));
}

// The lists of both ways to bring X, and W in their order.
struct CopyLists {
  std::vector<WindowBlock> blocks;
  std::vector<Vector> vectors;
  std::vector<int64_t> features;  // (groups, blocks): W's first for each block
};

// Every group's copies, as many as fill whole K steps.
CopyLists ListCopies(const ConvNode& node, int64_t channels) {
  const ConvSpec& spec = node.spec;
  const size_t features = CeilDivide(spec.K, kStep) * kStep;
  const int64_t pixel = spec.channels / kVector;
  CopyLists lists;
  for (int64_t g = 0; g < spec.group; ++g) {
    for (const Copy& copy : Copies(node, channels, g)) {
      const int64_t row = copy.row * spec.rows.dilation << 16, column = copy.column * spec.columns.dilation;
      const int64_t tap = row | (copy.row * spec.columns.kernel + copy.column);
      const int64_t offset = column * pixel + copy.channel / kVector;
      lists.blocks.push_back({static_cast<int32_t>(copy.channel), static_cast<int32_t>(row | column)});
      for (int64_t i = 0; i < channels / kVector; ++i) {
        lists.vectors.push_back({static_cast<int32_t>(offset + i), static_cast<int32_t>(tap)});
      }
      lists.features.push_back(copy.feature);
    }
    lists.blocks.resize((g + 1) * features / channels, {static_cast<int32_t>(spec.channels), 0});
    lists.vectors.resize((g + 1) * features / kVector, {0, kMostTaps});
  }
  return lists;
}

// W with its features in the order of the copies: itself, or made anew.
std::shared_ptr<const Weight16> OrderedWeight16(const ConvNode& node, int64_t channels,
                                                const std::vector<int64_t>& features) {
  const ConvSpec& spec = node.spec;
  const int64_t blocks = features.size() / spec.group;
  bool sorted = true;
  for (auto of = features.begin(); of != features.end(); of += blocks) {
    sorted = sorted && std::is_sorted(of, of + blocks);
  }
  if (sorted) return SharedWeight16(node);
  const HostWeight16& rounded = RoundedWeight16(node);
  std::vector<uint16_t> values(rounded.values.size());
  for (int64_t n = 0; n < spec.N; ++n) {
    const int64_t* from = &features[n / spec.GroupOutputs() * blocks];
    for (int64_t i = 0; i < blocks; ++i) {
      std::copy_n(&rounded.values[n * spec.K + from[i]], channels, &values[n * spec.K + i * channels]);
    }
  }
  return std::make_shared<const Weight16>(
      Weight16{DeviceBuffer(node.driver, values), DeviceBuffer(node.driver, rounded.scale), false});
}

// How many groups to take together so that each has whole vectors of channels and whole tiles of outputs: 0
// if that cannot be done, or would multiply more zeros than a kernel without tensor cores has products.
int64_t Together(const ConvSpec& spec) {
  const int64_t count = GroupsTogether(spec, kVector, kLeastColumns);
  return count <= (spec.block == 0 ? kMostTogether : 1) ? count : 0;
}

std::unique_ptr<ConvNode> TakenTogether(const ConvNode& node) {
  const int64_t count = node.spec.group == 1 ? 1 : Together(node.spec);
  return count == 1 ? nullptr : std::make_unique<ConvNode>(WithGroupsTogether(node, count));
}

bool Serves(const ConvSpec& spec) {
  if (spec.x_type == ElementType::kFloat || spec.y_type != spec.x_type || spec.pool != 1) return false;
  if (spec.channels % kVector != 0 || spec.N % kVector != 0) return false;
  if (spec.group > 1 && Together(spec) == 0) return false;
  if (spec.block != 0 && CopyChannels(spec) < kVector) return false;
  return MapTakes(spec.rows) && MapTakes(spec.columns);
}

// A tile has the outputs of one group, and so have two that share X.
bool Serves(const ConvSpec& spec, const HopperImage& row) {
  if (row.splits > CeilDivide(spec.K, kStep)) return false;
  const bool short_blocks = spec.block != 0 && CopyChannels(spec) < kStep;
  if (row.vectors && (!short_blocks || spec.Taps() > kMostTaps)) return false;
  if (row.transposed && (CopyChannels(spec) < kStep || spec.has_residual)) return false;
  return spec.group == 1 || spec.GroupOutputs() % (row.block_n * (row.pair == kPairColumns ? 2 : 1)) == 0;
}

// What all tile sizes share.
struct SharedOperands {
  std::unique_ptr<ConvNode> own;  // with groups taken together, if they are
  const ConvNode& node;
  int64_t channels;  // of a block
  int64_t features;  // of a group, as many as fill whole K steps
  std::shared_ptr<const Weight16> weight;
  DeviceBuffer blocks, vectors;

  explicit SharedOperands(const ConvNode& given)
      : own(TakenTogether(given)),
        node(own != nullptr ? *own : given),
        channels(CopyChannels(node.spec)),
        features(CeilDivide(node.spec.K, kStep) * kStep) {
    const CopyLists lists = ListCopies(node, channels);
    weight = OrderedWeight16(node, channels, lists.features);
    blocks = DeviceBuffer(node.driver, lists.blocks);
    if (node.spec.block != 0) vectors = DeviceBuffer(node.driver, lists.vectors);
    if (own == nullptr) return;
    own->unpacked = {};
    own->rounded = {};
  }
};

class HopperConv : public ConvKernel {
 public:
  HopperConv(const HopperImage& row, std::shared_ptr<const SharedOperands> operands)
      : operands_(std::move(operands)),
        node_(operands_->node),
        row_(row),
        kernel_(KernelOf(node_.driver, row.image, node_.device)),
        map_type_(row.type == ElementType::kFloat16 ? kMapFloat16 : kMapBfloat16),
        problem_(node_.spec, operands_->weight->scale.data(), node_.bias) {
    const ConvSpec& spec = node_.spec;
    const int w_rows = row.pair == kPairRows ? row.block_n / 2 : row.block_n;
    problem_.w = Map(operands_->weight->values.data(), spec.N, spec.K, w_rows);
    problem_.K = static_cast<int32_t>(spec.K);
    problem_.features = problem_.K;
    problem_.box_columns = row.vectors ? kStep : static_cast<int32_t>(operands_->channels);
    problem_.pair = row.pair;
    problem_.splits = row.splits;
    problem_.group = kGroup;
  }

  const char* Name() const override { return row_.image.name; }

  double Nanoseconds(const ConvShape& shape) override {
    const ConvSpec& spec = node_.spec;
    const int64_t cells = Cells(shape);
    const int64_t rounds = CeilDivide(cells, Clusters());
    const double copies = row_.block_m * (kStep / problem_.box_columns - 1) * kBoxRow;
    const double products =
        CeilDivide(CeilDivide(spec.K, kStep), row_.splits) * std::max<double>(row_.step_ns, copies);
    const double end = row_.tile_ns * (spec.has_residual ? kCostlyEnd : 1);
    const double tiles = row_.turns ? rounds * std::max(products, end / 2) + end : rounds * (products + end);
    const double elements =
        Inputs(shape) + 1.0 * shape.Pixels() * spec.N * (spec.has_residual ? 2 : 1) + 1.0 * spec.N * spec.K;
    return row_.fixed_ns + std::max(tiles, 2 * elements / kBytes) + 0.05 * tiles;
  }

  void Launch(const ConvCall& call) override {
    const ConvSpec& s = node_.spec;
    const ConvShape& shape = call.shape;
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    HopperProblem problem = problem_;
    problem.x = row_.vectors ? problem_.w : ImageMap(call);  // threads need no map, but one is prefetched
    const bool boxes = row_.splits == 1 ? EndsInBoxes(s, row_.type) : EndsInRegisters(s, row_.type);
    problem.SetOutput(s, node_.driver, shape.Pixels(), call.y, call.residual, boxes, row_.OutputBoxRows());
    const WindowGrid grid(s, shape);
    Windows windows{operands_->blocks.data(), narrow(operands_->features / operands_->channels), grid};
    Vectors vectors{call.x,
                    operands_->vectors.data(),
                    narrow(operands_->features / kVector),
                    grid,
                    narrow(shape.in_rows),
                    narrow(shape.in_columns),
                    narrow(s.channels / kVector),
                    narrow(s.rows.kernel),
                    narrow(s.columns.kernel),
                    narrow(s.rows.dilation),
                    narrow(s.columns.dilation)};
    const int64_t cells = Cells(shape);
    const int64_t clusters = row_.splits > 1 ? cells : std::min(cells, Clusters());
    void* x = row_.vectors ? static_cast<void*>(&vectors) : &windows;
    void* arguments[] = {&problem, x};
    node_.driver.Launch(kernel_.Get(), static_cast<unsigned>(clusters * ClusterSize()), ClusterSize(),
                        row_.image.threads, row_.image.shared_bytes, call.stream, arguments, true);
  }

 private:
  unsigned ClusterSize() const { return (row_.pair ? 2 : 1) * row_.splits; }
  int64_t Clusters() const {  // that run at once
    // clusters of more than two do not fill every part of the GPU that they must not leave
    const int64_t usable = ClusterSize() > 2 ? node_.multiprocessors * 9 / 10 : node_.multiprocessors;
    return std::max<int64_t>(1, usable * row_.blocks_per_multiprocessor / ClusterSize());
  }
  int64_t Cells(const ConvShape& shape) const {
    return CeilDivide(shape.Pixels(), row_.block_m * (row_.pair == kPairRows ? 2 : 1)) *
           CeilDivide(node_.spec.N, row_.block_n * (row_.pair == kPairColumns ? 2 : 1));
  }

  // Elements of X that are read from device memory: filters of one tap see the pixels of Y alone, and leave
  // out what kept blocks do not name.
  double Inputs(const ConvShape& shape) const {
    const ConvSpec& spec = node_.spec;
    if (spec.Taps() > 1) return 1.0 * shape.batch * shape.in_rows * shape.in_columns * spec.channels;
    const bool sectors = spec.block == 0 || operands_->channels >= kSector;
    return 1.0 * shape.Pixels() * spec.group * (sectors ? spec.K : spec.GroupChannels());
  }

  // A matrix that is read or written in boxes of 64 columns.
  TensorMap Map(const void* data, int64_t rows, int64_t columns, int box_rows) const {
    return node_.driver.EncodeMatrix(data, map_type_, 2, rows, columns, columns, box_rows, kStep,
                                     SwizzleOf(2 * kStep));
  }

  TensorMap ImageMap(const ConvCall& call) const {
    const int rows = row_.pair == kPairColumns ? row_.block_m / 2 : row_.block_m;
    return WindowMap(node_, call, static_cast<int>(operands_->channels), rows);
  }

  std::shared_ptr<const SharedOperands> operands_;
  const ConvNode& node_;
  const HopperImage& row_;
  LazyKernel& kernel_;
  int map_type_;
  HopperProblem problem_;  // what does not change between runs
};

}  // namespace

void HopperConvKernels(const ConvNode& node, ConvKernels& kernels) {
  if (!Serves(node.spec)) return;
  const int architecture = kHopperConvImages.ArchitectureFor(node.capability);
  std::shared_ptr<const SharedOperands> operands;
  for (const HopperImage& row : kHopperConvImages) {
    // machine code for sm_90a runs nowhere else
    if (row.image.architecture != architecture || architecture != node.capability) continue;
    if (row.type != node.spec.x_type || !node.Admits(row.image.name)) continue;
    if (operands == nullptr) operands = std::make_shared<SharedOperands>(node);
    if (Serves(operands->node.spec, row)) kernels.push_back(std::make_unique<HopperConv>(row, operands));
  }
}

}  // namespace deftonnx
