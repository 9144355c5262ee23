#include "cuda_mlp.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "aligned.h"
#include "error.h"
#include "float16_weight.h"
#include "float_bits.h"
#include "gemm_arguments.h"

namespace deftonnx {
namespace {

constexpr int kTile = 8;         // output features of a warp's product
constexpr int kStepInputs = 32;  // of K
constexpr int kStepBytes = 512;  // of weights: a tile's for a step
constexpr int kMostWarps = 8;
constexpr int kMostCluster = 8;
constexpr int kBarrierBytes = 16;

constexpr int kIndexBits = 4;
constexpr char kLayerByLayer[] = "layers";  // what a node asks for

// Layer and Problem of kernels/mlp.cu.
struct MlpLayer {
  int32_t steps, groups;
  int32_t curve, gated;
  float slope, offset, low, high;
  int32_t y_type;
};
static_assert(sizeof(MlpLayer) == 36);

struct MlpProblem {
  const void* x;
  void* y;
  const void* layers;
  const void* stream;
  const void* starts;
  int64_t M;
  int32_t K, N, count, cluster, warps, x_type, y_type;
  int32_t width[2];
};
static_assert(sizeof(MlpProblem) == 88);

int64_t RoundUp(int64_t value, int64_t multiple) { return CeilDivide(value, multiple) * multiple; }

// What all blocks together make of a layer's output features: the next layer reads whole steps of them.
int64_t Made(const GemmSpec& layer, int cluster) {
  return RoundUp(layer.N, std::max(cluster * kTile, kStepInputs));
}

int Groups(const GemmSpec& layer, int cluster) {
  return static_cast<int>(Made(layer, cluster) / (cluster * kTile));
}

MlpShape ShapeOf(const MlpSpec& spec, int cluster, int most_warps) {
  MlpShape shape{cluster, 0, {0, 0}};
  int64_t widths[2] = {RoundUp(spec.layers.front().K, kStepInputs), 0};
  int groups = 0;
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    groups = std::max(groups, Groups(spec.layers[i], shape.cluster));
    int64_t& width = widths[(i + 1) % 2];
    if (i + 1 < spec.layers.size()) width = std::max(width, Made(spec.layers[i], shape.cluster));
  }
  shape.warps = std::min(groups, most_warps);
  constexpr int64_t kMostWidth = 1 << 20;  // far more than fit in shared memory
  for (int i = 0; i < 2; ++i) shape.width[i] = static_cast<int>(std::min(widths[i], kMostWidth));
  return shape;
}

int64_t SharedBytes(const MlpSpec& spec, const MlpShape& shape, const MlpImage& row) {
  const int64_t rings = int64_t{1} * shape.warps * row.ring * kStepBytes;
  const int64_t inputs = int64_t{2} * row.rows * (shape.width[0] + shape.width[1]);
  return rings + inputs + kBarrierBytes + static_cast<int64_t>(spec.layers.size() * sizeof(MlpLayer));
}

// A layer's constants on the host: W (N, padded_K) in 16 bits of X's type.
struct Constants {
  std::vector<uint16_t> weight;
  std::vector<float> scale, bias;
};

template <class T>
std::vector<T> OnHost(const Ort& ort, const OrtKernelInfo* info, size_t index, size_t count) {
  Tensor tensor;
  ort.ConstantInput(info, index, &tensor);
  std::vector<T> values(count);
  CudaDriver::Get().CopyToHost(values.data(), tensor.data, count * sizeof(T));
  return values;
}

// Whether W's values fit in X's type, exactly or as float16_weight.h has it.
bool Fits(const GemmSpec& layer) {
  if (layer.format == Format::kDeft8 || layer.format == Format::kDeft16) return true;
  return layer.format == Format::kHalf && layer.x_type == ElementType::kFloat16;
}

Constants ReadConstants(const Ort& ort, const OrtKernelInfo* info, const GemmSpec& layer, size_t input) {
  const int64_t N = layer.N, row = layer.padded_K;
  Constants constants{{}, OnHost<float>(ort, info, input + 1, N), OnHost<float>(ort, info, input + 2, N)};
  if (layer.format != Format::kDeft8) {
    constants.weight = OnHost<uint16_t>(ort, info, input, N * row);
    if (IsWrittenAnew(layer)) ToHalf(constants.weight.data(), constants.scale.data(), N, row);
    return constants;
  }
  std::vector<uint8_t> codes = OnHost<uint8_t>(ort, info, input, N * row);
  if (IsWrittenAnew(layer)) ToDeft8With5(codes.data(), constants.scale.data(), N, row, layer.exponent_bits);
  std::array<uint16_t, 256> values;
  for (int code = 0; code < 256; ++code) {
    const float value = Deft8ToFloat(static_cast<uint8_t>(code), AsServed(layer).exponent_bits);
    values[code] = layer.x_type == ElementType::kFloat16 ? FloatToHalf(value) : FloatToBfloat16(value);
  }
  constants.weight.resize(codes.size());
  std::transform(codes.begin(), codes.end(), constants.weight.begin(),
                 [&](uint8_t code) { return values[code]; });
  return constants;
}

// Words of 16 bits that a tile takes: scale and bias, and the weights of every step.
size_t TileWords(const GemmSpec& layer) {
  return (1 + CeilDivide(layer.K, kStepInputs)) * kStepBytes / sizeof(uint16_t);
}

// Writes what four lanes have of an output feature's weights for a step, each four pairs that lie 8 inputs
// apart.
void WriteStep(uint16_t* to, const uint16_t* row) {
  std::array<uint32_t, kStepInputs / 2> pairs, lanes;
  std::memcpy(pairs.data(), row, sizeof pairs);
  for (int lane = 0; lane < 4; ++lane) {
    for (int pair = 0; pair < 4; ++pair) lanes[lane * 4 + pair] = pairs[pair * 4 + lane];
  }
  std::memcpy(to, lanes.data(), sizeof lanes);
}

// Writes a tile's scale and bias, and its weights: the order of kernels/mlp.cu. Zeros beyond the layer.
void WriteTile(uint16_t* to, const GemmSpec& layer, const Constants& constants, int64_t first) {
  constexpr int kLanes = 32, kLaneWords = kStepBytes / sizeof(uint16_t) / kLanes;
  for (int lane = 0; lane < kLanes; ++lane, to += kLaneWords) {
    float values[4] = {};
    for (int j = 0; j < 2; ++j) {
      const int64_t n = first + lane % 4 * 2 + j;
      if (n < layer.N) values[j] = constants.scale[n], values[2 + j] = constants.bias[n];
    }
    std::memcpy(to, values, sizeof values);
  }
  const int64_t features = std::min<int64_t>(kTile, layer.N - first);
  for (int64_t k = 0; k < layer.K; k += kStepInputs, to += kTile * kStepInputs) {
    for (int64_t n = 0; n < features; ++n) {
      const uint16_t* row = &constants.weight[(first + n) * layer.padded_K + k];
      std::array<uint16_t, kStepInputs> last{};
      if (k + kStepInputs > layer.K) {
        std::copy_n(row, layer.K - k, last.begin());
        row = last.data();
      }
      WriteStep(to + n * kStepInputs, row);
    }
  }
}

// The weights of every warp of every block in turn; `starts`: where each begins, in steps, and the last ends.
std::vector<uint16_t> MakeStream(const MlpSpec& spec, const std::vector<Constants>& constants,
                                 const MlpShape& shape, std::vector<int32_t>& starts) {
  size_t words = 0;
  for (const GemmSpec& layer : spec.layers) {
    words += TileWords(layer) * Groups(layer, shape.cluster) * shape.cluster;
  }
  std::vector<uint16_t> stream(words);
  size_t written = 0;
  const auto mark = [&] { starts.push_back(static_cast<int32_t>(written * sizeof(stream[0]) / kStepBytes)); };
  for (int rank = 0; rank < shape.cluster; ++rank) {
    for (int warp = 0; warp < shape.warps; ++warp) {
      mark();
      for (size_t i = 0; i < spec.layers.size(); ++i) {
        const GemmSpec& layer = spec.layers[i];
        for (int group = warp; group < Groups(layer, shape.cluster); group += shape.warps) {
          WriteTile(&stream[written], layer, constants[i], (group * shape.cluster + rank) * kTile);
          written += TileWords(layer);
        }
      }
    }
  }
  mark();
  return stream;
}

std::vector<MlpLayer> MakeLayers(const MlpSpec& spec, const MlpShape& shape) {
  std::vector<MlpLayer> layers;
  for (const GemmSpec& layer : spec.layers) {
    const Activation& a = layer.activation;
    const auto steps = static_cast<int32_t>(CeilDivide(layer.K, kStepInputs));
    layers.push_back({steps, Groups(layer, shape.cluster), a.curve, a.gated, a.slope, a.offset, a.low, a.high,
                      TypeCode(layer.y_type)});
  }
  return layers;
}

// The kernel that rounds float32 X to `type`. Throws InvalidNode if there is none for the architecture.
const KernelImage& RoundingImage(const MlpSpec& spec, int architecture) {
  for (const MlpImage& row : kMlpImages) {
    if (row.image.architecture == architecture && row.type == spec.type && row.rows == 0) return row.image;
  }
  Refuse(spec, "no kernel for this GPU");
}

}  // namespace

CudaMlp::CudaMlp(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y)
    : ort_(ort), spec_(ReadMlpSpec(ort, info, x, y)), driver_(CudaDriver::Get()) {
  const CUdevice device = driver_.CurrentDevice();
  const int capability = driver_.ComputeCapability(device);
  multiprocessors_ = driver_.MultiprocessorCount(device);
  // fewer warps have smaller rings
  for (int warps = kMostWarps; warps > 0 && kernels_.empty(); warps /= 2) {
    shape_ = ShapeOf(spec_, capability >= 90 ? kMostCluster : 1, warps);
    FindKernels(device, kMlpImages.ArchitectureFor(capability));
  }
  if (spec_.kernel.empty() || spec_.kernel == kLayerByLayer) {
    const KernelImage& rounding = RoundingImage(spec_, kMlpImages.ArchitectureFor(capability));
    apart_ = std::make_unique<MlpLayers>(ort, info, spec_,
                                         MlpRounding{&KernelOf(driver_, rounding, device), rounding.threads,
                                                     CanStartEarly(rounding.architecture)});
  }
  if (!std::all_of(spec_.layers.begin(), spec_.layers.end(), Fits)) kernels_.clear();
  if (kernels_.empty() && apart_ == nullptr)
    Refuse(spec_, "no kernel '" + spec_.kernel + "' for this GPU, these types and widths");
  if (For(1) == nullptr) {  // nor would they serve more rows
    kernels_.clear();
    last_ = 0;
  }
  if (!kernels_.empty()) MakeConstants(ort, info);
  scratch_ = ort.DeviceAllocator(info);  // last: nobody releases it if this throws
}

CudaMlp::~CudaMlp() { ort_.Release(scratch_); }

void CudaMlp::MakeConstants(const Ort& ort, const OrtKernelInfo* info) {
  std::vector<Constants> constants;
  for (size_t i = 0; i < spec_.layers.size(); ++i) {
    constants.push_back(ReadConstants(ort, info, spec_.layers[i], MlpWeightInput(i)));
  }
  std::vector<int32_t> starts;
  const std::vector<uint16_t> stream = MakeStream(spec_, constants, shape_, starts);
  std::array<DeviceBuffer, 3> there =
      DeviceBuffer::Together(driver_, stream, MakeLayers(spec_, shape_), starts);
  stream_ = std::move(there[0]);
  layers_ = std::move(there[1]);
  starts_ = std::move(there[2]);
}

void CudaMlp::FindKernels(CUdevice device, int architecture) {
  for (const MlpImage& row : kMlpImages) {
    if (row.image.architecture != architecture || row.type != spec_.type || row.rows == 0) continue;
    if (!spec_.kernel.empty() && spec_.kernel != row.image.name) continue;
    const int64_t bytes = SharedBytes(spec_, shape_, row);
    if (bytes > row.image.shared_bytes) continue;
    kernels_.push_back({&row, &KernelOf(driver_, row.image, device), static_cast<unsigned>(bytes)});
  }
}

// Fitted to measurements on an H200.
double CudaMlp::Nanoseconds(const Candidate& candidate, int64_t M) const {
  constexpr double kStart = 1900;    // from the launch to the first layer, and from the last one to the end
  constexpr double kLayer = 1100;    // the way of a layer's output to the other blocks
  constexpr double kBytes = 31;      // of weights that a multiprocessor multiplies by in a nanosecond
  constexpr double kBytesOfX = 50;   // that it loads
  constexpr double kMoreRows = 0.6;  // as much longer do twice the rows take
  constexpr double kOfMachine = 0.875;  // of the multiprocessors make clusters: their groups leave a rest
  constexpr double kCrowded = 1.3;      // as much longer do two blocks of a multiprocessor take
  constexpr int kBlocks = 2;            // that fit, by their registers
  const int rows = candidate.row->rows;
  double layers = 0;
  for (const GemmSpec& layer : spec_.layers) {
    const double weights = static_cast<double>(layer.padded_K) * Made(layer, shape_.cluster);
    layers += std::max(kLayer, weights * sizeof(uint16_t) / shape_.cluster / kBytes);
  }
  layers *= 1 + kMoreRows * (rows / kernels_.front().row->rows - 1);
  const double X = static_cast<double>(spec_.layers.front().K) * rows * sizeof(uint16_t) / kBytesOfX;
  const double clusters = CeilDivide(M, rows);
  const double whole = shape_.cluster > 1 ? kOfMachine : 1;
  const double at_once = std::max(1.0, std::floor(whole * multiprocessors_ / shape_.cluster));
  const int blocks =
      std::min(kBlocks, candidate.row->image.shared_bytes / static_cast<int>(candidate.shared_bytes));
  const double crowded = clusters > at_once && blocks > 1 ? kCrowded : 1;
  return kStart + (X + layers) * crowded * std::ceil(clusters / (at_once * blocks));
}

const CudaMlp::Candidate* CudaMlp::For(int64_t M) const {
  const uint64_t last = last_.load(std::memory_order_relaxed);
  uint64_t index = last % (1 << kIndexBits);
  if (last >> kIndexBits != static_cast<uint64_t>(M)) {
    index = kernels_.size();
    double least = apart_ == nullptr || M > kMostRows ? kRefused : apart_->Nanoseconds(M);
    for (size_t i = 0; i < kernels_.size(); ++i) {
      const double time = Nanoseconds(kernels_[i], M);
      if (time < least) least = time, index = i;
    }
    last_.store(static_cast<uint64_t>(M) << kIndexBits | index, std::memory_order_relaxed);
  }
  return index == kernels_.size() ? nullptr : &kernels_[index];
}

void CudaMlp::Compute(const Ort& ort, OrtKernelContext* context) const {
  const MlpInputs inputs = ReadMlpInputs(spec_, ort, context);
  void* output = ort.Output(context, 0, inputs.y_shape);
  if (inputs.M == 0) return;
  const Place place{driver_, scratch_, ort.ComputeStream(context)};
  const AlignedInput x(place, inputs.x, inputs.M * spec_.layers.front().K * ElementBytes(spec_.x_type));
  const AlignedOutput y(place, output, inputs.M * spec_.layers.back().N * ElementBytes(spec_.y_type));
  const Candidate* chosen = For(inputs.M);
  if (chosen == nullptr) {
    apart_->Launch(inputs.M, x.data(), y.data(), place.stream);
  } else {
    Launch(*chosen, inputs.M, x.data(), y.data(), place.stream);
  }
  y.Store();
}

void CudaMlp::Launch(const Candidate& chosen, int64_t M, const void* x, void* y, CUstream stream) const {
  const int64_t blocks = CeilDivide(M, chosen.row->rows) * shape_.cluster;
  if (blocks > std::numeric_limits<int32_t>::max()) Refuse(spec_, "X has too many rows");
  const MlpProblem problem{x,
                           y,
                           layers_.data(),
                           stream_.data(),
                           starts_.data(),
                           M,
                           static_cast<int32_t>(spec_.layers.front().K),
                           static_cast<int32_t>(spec_.layers.back().N),
                           static_cast<int32_t>(spec_.layers.size()),
                           shape_.cluster,
                           shape_.warps,
                           TypeCode(spec_.x_type),
                           TypeCode(spec_.y_type),
                           {shape_.width[0], shape_.width[1]}};
  void* arguments[] = {const_cast<MlpProblem*>(&problem)};
  driver_.Launch(chosen.kernel->Get(), static_cast<unsigned>(blocks), shape_.cluster,
                 chosen.row->image.threads, chosen.shared_bytes, stream, arguments,
                 CanStartEarly(chosen.row->image.architecture));
}

}  // namespace deftonnx
