#include "hopper_windows.h"

#include "hopper_problem.h"

namespace deftonnx {
namespace {

int32_t Narrow(int64_t value) { return static_cast<int32_t>(value); }

// How far the last window begins from the image's end.
int LastStart(const Axis& axis) { return static_cast<int>(axis.pad_end - (axis.kernel - 1) * axis.dilation); }

}  // namespace

WindowGrid::WindowGrid(const ConvSpec& spec, const ConvShape& shape)
    : outputs(Narrow(spec.GroupOutputs())),
      rows(Narrow(shape.out_rows)),
      columns(Narrow(shape.out_columns)),
      row_stride(Narrow(spec.rows.stride)),
      column_stride(Narrow(spec.columns.stride)),
      row_start(Narrow(-spec.rows.pad_begin)),
      column_start(Narrow(-spec.columns.pad_begin)) {}

bool MapTakes(const Axis& axis) {
  const int last = LastStart(axis);
  return axis.pad_begin <= 128 && last >= -128 && last <= 127 && (axis.kernel - 1) * axis.dilation <= 255 &&
         axis.stride <= 8;
}

TensorMap WindowMap(const ConvNode& node, const ConvCall& call, int channels, int pixels) {
  const ConvSpec& s = node.spec;
  const ConvShape& shape = call.shape;
  const int type = s.x_type == ElementType::kFloat16 ? kMapFloat16 : kMapBfloat16;
  const uint64_t sizes[] = {static_cast<uint64_t>(shape.batch), static_cast<uint64_t>(shape.in_rows),
                            static_cast<uint64_t>(shape.in_columns), static_cast<uint64_t>(s.channels)};
  return node.driver.EncodeIm2col(
      call.x, type, sizes, {Narrow(-s.rows.pad_begin), Narrow(-s.columns.pad_begin)},
      {LastStart(s.rows), LastStart(s.columns)},
      {static_cast<uint32_t>(s.rows.stride), static_cast<uint32_t>(s.columns.stride)},
      static_cast<uint32_t>(channels), static_cast<uint32_t>(pixels), SwizzleOf(2 * channels));
}

}  // namespace deftonnx
