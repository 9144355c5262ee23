#include "pool_spec.h"

#include <map>
#include <string>

namespace deftonnx {
namespace {

PoolKind Kind(const PoolSpec& spec, const std::string& name) {
  static const std::map<std::string, PoolKind> table = {{"max", PoolKind::kMax},
                                                        {"average", PoolKind::kAverage},
                                                        {"average_padded", PoolKind::kAveragePadded},
                                                        {"normalise", PoolKind::kNormalise}};
  const auto found = table.find(name);
  if (found == table.end()) Refuse(spec, "unknown kind '" + name + "'");
  return found->second;
}

void CheckWindow(const PoolSpec& spec, const Window& window) {
  const bool whole_columns = window.columns.kernel == 0;
  if (window.image_axes == 2 && (window.rows.kernel == 0) != whole_columns) {
    Refuse(spec, "kernel_shape must be 0 on all axes or on none");
  }
  for (const Axis* axis : {&window.rows, &window.columns}) {
    const bool padded = axis->pad_begin > 0 || axis->pad_end > 0;
    if (axis->kernel == 0 && (padded || axis->stride != 1 || axis->dilation != 1)) {
      Refuse(spec, "a window of the whole image has no strides, pads or dilations");
    }
    const int64_t extent = axis->dilation * (axis->kernel - 1) + 1;
    if (padded && (axis->pad_begin >= extent || axis->pad_end >= extent)) {
      Refuse(spec, "pads must be smaller than the window");
    }
  }
}

void CheckNormalise(const PoolSpec& spec, const Window& window) {
  for (const Axis* axis : {&window.rows, &window.columns}) {
    const bool same = axis->kernel % 2 == 1 && axis->stride == 1 && axis->dilation == 1 &&
                      axis->pad_begin == axis->kernel / 2 && axis->pad_end == axis->kernel / 2;
    if (!same) Refuse(spec, "a normalisation needs an odd window that leaves the size of the image alone");
  }
  if (spec.size % 2 == 0) Refuse(spec, "size = " + std::to_string(spec.size) + " is not odd");
  if (spec.size > 1 && window.rows.kernel * window.columns.kernel > 1) {
    Refuse(spec, "a normalisation is over channels or over the image, not both");
  }
}

int64_t OutputSize(const Axis& axis, int64_t size, bool ceil_mode) {
  const int64_t room = size + axis.pad_begin + axis.pad_end - axis.dilation * (axis.kernel - 1) - 1;
  if (room < 0) return 0;
  if (!ceil_mode) return room / axis.stride + 1;
  const int64_t count = (room + axis.stride - 1) / axis.stride + 1;
  return (count - 1) * axis.stride >= size + axis.pad_begin ? count - 1 : count;  // the last one sees a pixel
}

}  // namespace

PoolSpec ReadPoolSpec(const Ort& ort, const OrtKernelInfo* info, ElementType type) {
  PoolSpec spec{};
  spec.op = "DeftPool";
  spec.type = type;
  const AttributeReader reader(ort, info, spec);
  spec.kind = Kind(spec, reader.Text("kind"));
  const Window window = ReadWindow(reader, spec, 0);
  spec.image_axes = window.image_axes, spec.rows = window.rows, spec.columns = window.columns;
  CheckWindow(spec, window);
  spec.ceil_mode = reader.Integer("ceil_mode") != 0;
  spec.size = reader.Size("size");
  spec.alpha = reader.Real("alpha"), spec.beta = reader.Real("beta"), spec.bias = reader.Real("bias");
  if (spec.kind == PoolKind::kNormalise) CheckNormalise(spec, window);
  if (spec.kind != PoolKind::kNormalise && spec.size != 1) Refuse(spec, "only a normalisation has a size");
  reader.CheckOutputType(type, type, "X");
  return spec;
}

PoolCall ReadPoolCall(const PoolSpec& spec, const Ort& ort, const OrtKernelContext* context,
                      std::vector<int64_t>* y_shape) {
  const Tensor x = ort.Input(context, 0);
  if (x.shape.size() != static_cast<size_t>(spec.image_axes) + 2) {
    Refuse(spec, "X has shape " + ShapeText(x.shape) + ", expected " + std::to_string(spec.image_axes + 2) +
                     " axes");
  }
  const bool flat = spec.image_axes == 1;
  PoolCall call{x.shape[0],
                flat ? 1 : x.shape[1],
                flat ? x.shape[1] : x.shape[2],
                0,
                0,
                x.shape.back(),
                spec.rows,
                spec.columns,
                x.data};
  if (call.rows.kernel == 0) call.rows.kernel = call.in_rows;
  if (call.columns.kernel == 0) call.columns.kernel = call.in_columns;
  call.out_rows = OutputSize(call.rows, call.in_rows, spec.ceil_mode);
  call.out_columns = OutputSize(call.columns, call.in_columns, spec.ceil_mode);
  if (call.in_rows < 1 || call.in_columns < 1 || call.out_rows < 1 || call.out_columns < 1) {
    Refuse(spec, "X of shape " + ShapeText(x.shape) + " is smaller than the window");
  }
  *y_shape = {call.batch};
  if (!flat) y_shape->push_back(call.out_rows);
  y_shape->insert(y_shape->end(), {call.out_columns, call.channels});
  return call;
}

}  // namespace deftonnx
