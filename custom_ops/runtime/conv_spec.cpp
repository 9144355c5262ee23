#include "conv_spec.h"

#include <limits>
#include <optional>
#include <sstream>

namespace deftonnx {
namespace {

void CheckFeatures(const ConvSpec& spec) {
  if (spec.channels % spec.group != 0 || spec.N % spec.group != 0) {
    Refuse(spec, "group = " + std::to_string(spec.group) + " does not divide channels and N");
  }
  if (spec.Taps() > std::numeric_limits<int32_t>::max() / spec.GroupChannels()) {
    Refuse(spec, "kernel_shape and channels make too many features");
  }
  const int64_t features = spec.Taps() * spec.GroupChannels();
  if (spec.block == 0 && spec.K != features) {
    Refuse(spec, "K = " + std::to_string(spec.K) + ", but kernel_shape and channels make " +
                     std::to_string(features) + " features and block = 0 keeps all");
  }
  if (spec.block > 0 && (spec.GroupChannels() % spec.block != 0 || spec.K % spec.block != 0)) {
    Refuse(spec, "block = " + std::to_string(spec.block) + " does not divide K and the channels of a group");
  }
  if (spec.block > 0 && spec.K > features) Refuse(spec, "K is more than the features there are");
}

int64_t ReadPool(const AttributeReader& reader, const ConvSpec& spec) {
  const std::optional<std::vector<int64_t>> pool = reader.OptionalIntegers("pool");
  if (!pool || *pool == std::vector<int64_t>{1, 1}) return 1;
  if (*pool != std::vector<int64_t>{2, 2} || spec.image_axes != 2) {
    Refuse(spec, "pool = " + ShapeText(*pool) + ", but images of two axes alone are pooled, by (2, 2)");
  }
  return 2;
}

}  // namespace

ConvSpec ReadConvAttributes(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType weight,
                            ElementType y) {
  ConvSpec spec{};
  spec.op = "DeftConv";
  spec.x_type = x;
  spec.weight_type = weight;
  spec.y_type = y;
  const NodeReader reader(ort, info, spec);
  reader.ReadPacked();
  if (spec.rounds_x) Refuse(spec, "format 'fp8' is for DeftGemm alone");
  spec.channels = reader.Size("channels");
  spec.group = reader.Size("group");
  const Window window = ReadWindow(reader, spec);
  spec.image_axes = window.image_axes, spec.rows = window.rows, spec.columns = window.columns;
  spec.pool = ReadPool(reader, spec);
  CheckFeatures(spec);
  return spec;
}

ConvSpec ReadConvSpec(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y) {
  ConvSpec spec = ReadConvAttributes(ort, info, x, WeightType(ort, info), y);
  NodeReader(ort, info, spec).CheckConstants(spec.group * spec.KeptBlocks());
  if (spec.pool != 1 && spec.has_residual) Refuse(spec, "a residual cannot be pooled");
  return spec;
}

void CheckKept(const ConvSpec& spec, const int32_t* kept, size_t count) {
  const int64_t blocks = spec.Taps() * spec.GroupChannels() / spec.block;
  for (size_t i = 0; i < count; ++i) {
    const int64_t group = static_cast<int64_t>(i) / spec.KeptBlocks();
    if (kept[i] < group * blocks || kept[i] >= (group + 1) * blocks) {
      Refuse(spec, "kept block " + std::to_string(kept[i]) + " is outside the " + std::to_string(blocks) +
                       " blocks of group " + std::to_string(group));
    }
    if (i % spec.KeptBlocks() > 0 && kept[i] <= kept[i - 1]) Refuse(spec, "kept blocks must ascend");
  }
}

std::vector<FilterRun> FilterRuns(const ConvSpec& spec, const int32_t* kept, int64_t group) {
  const int64_t width = spec.block == 0 ? spec.GroupChannels() : spec.block;
  const int64_t a_tap = spec.GroupChannels() / width;
  const int64_t count = spec.K / width;
  std::vector<FilterRun> runs;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t block = spec.block == 0 ? i : kept[group * count + i] - group * spec.Taps() * a_tap;
    const int64_t tap = block / a_tap;
    runs.push_back({group * spec.GroupChannels() + block % a_tap * width, tap / spec.columns.kernel,
                    tap % spec.columns.kernel, width});
  }
  return runs;
}

std::string TimingKey(const ConvSpec& spec, const ConvShape& shape) {
  const Activation& a = spec.activation;
  std::ostringstream key;
  for (int64_t value : {static_cast<int64_t>(spec.x_type), static_cast<int64_t>(spec.y_type), spec.channels,
                        spec.K, spec.N, spec.group, spec.block, shape.batch, shape.in_rows, shape.in_columns,
                        static_cast<int64_t>(spec.has_residual), static_cast<int64_t>(a.gated),
                        static_cast<int64_t>(a.curve), spec.pool}) {
    key << value << ' ';
  }
  for (const Axis* axis : {&spec.rows, &spec.columns}) {
    key << axis->kernel << ' ' << axis->stride << ' ' << axis->pad_begin << ' ' << axis->pad_end << ' '
        << axis->dilation << ' ';
  }
  key << std::hexfloat;
  for (float value : {a.slope, a.offset, a.low, a.high}) key << value << ' ';
  key << spec.kernel;
  return key.str();
}

ConvShape ShapeOf(const ConvSpec& spec, int64_t batch, int64_t in_rows, int64_t in_columns) {
  const ConvShape shape{batch, in_rows, in_columns, spec.rows.OutputSize(in_rows),
                        spec.columns.OutputSize(in_columns)};
  if (shape.out_rows < spec.pool || shape.out_columns < spec.pool) {
    Refuse(spec, "images of " + ShapeText({in_rows, in_columns}) + " are smaller than the filter" +
                     (spec.pool > 1 ? ", pooled" : ""));
  }
  return shape;
}

ConvInputs ReadInputs(const ConvSpec& spec, const Ort& ort, const OrtKernelContext* context) {
  const Tensor x = ort.Input(context, kInputX);
  const size_t rank = static_cast<size_t>(spec.image_axes) + 2;
  if (x.shape.size() != rank || x.shape.back() != spec.channels) {
    Refuse(spec, "X has shape " + ShapeText(x.shape) + ", expected " + std::to_string(rank) +
                     " axes, the last of " + std::to_string(spec.channels) + " channels");
  }
  const bool flat = spec.image_axes == 1;
  const ConvShape shape = ShapeOf(spec, x.shape[0], flat ? 1 : x.shape[1], flat ? x.shape[1] : x.shape[2]);
  ConvInputs inputs{shape, x.data, nullptr, {}};
  inputs.y_shape = {shape.batch};
  if (!flat) inputs.y_shape.push_back(shape.out_rows / spec.pool);
  inputs.y_shape.insert(inputs.y_shape.end(), {shape.out_columns / spec.pool, spec.N});
  if (!spec.has_residual) return inputs;
  const Tensor residual = ort.Input(context, kInputResidual);
  if (residual.shape != inputs.y_shape) {
    Refuse(spec, "residual has shape " + ShapeText(residual.shape) + ", Y has " + ShapeText(inputs.y_shape));
  }
  inputs.residual = residual.data;
  return inputs;
}

}  // namespace deftonnx
