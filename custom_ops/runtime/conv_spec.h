// What a DeftConv node asks for, checked once when the session is made.
#pragma once

#include <string>
#include <vector>

#include "packed_node.h"
#include "window.h"

namespace deftonnx {

struct ConvSpec : PackedNode {
  int64_t channels;  // of X
  int64_t group;
  int64_t image_axes;  // of X: 1 or 2
  Axis rows, columns;
  int64_t pool;  // Y has the maxima of squares of so many rows and columns of pixels: 1 or 2

  int64_t GroupChannels() const { return channels / group; }
  int64_t GroupOutputs() const { return N / group; }
  int64_t Taps() const { return rows.kernel * columns.kernel; }
  // Blocks that W holds of a group's filters, 0 if it holds all features.
  int64_t KeptBlocks() const { return block == 0 ? 0 : K / block; }
};

// Reads and checks the node's attributes and the shapes of its constant inputs. Throws InvalidNode.
ConvSpec ReadConvSpec(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType y);

// The attributes alone, of a node whose constant inputs are not there. Throws InvalidNode.
ConvSpec ReadConvAttributes(const Ort& ort, const OrtKernelInfo* info, ElementType x, ElementType weight,
                            ElementType y);

// Checks the kept block numbers. Throws InvalidNode.
void CheckKept(const ConvSpec& spec, const int32_t* kept, size_t count);

// The features of one group's filters that are multiplied, as where each lies: `count` neighbouring channels
// of X from `channel` on, at the tap (row, column).
struct FilterRun {
  int64_t channel, row, column, count;
};

// One run for each kept block, or for each tap if all are kept; `kept` may be null then.
std::vector<FilterRun> FilterRuns(const ConvSpec& spec, const int32_t* kept, int64_t group);

// One run's images. A pixel is one (batch, row, column) of Y, before it is pooled.
struct ConvShape {
  int64_t batch, in_rows, in_columns, out_rows, out_columns;

  int64_t Pixels() const { return batch * out_rows * out_columns; }
  bool operator==(const ConvShape& o) const {
    return batch == o.batch && in_rows == o.in_rows && in_columns == o.in_columns;  // the others follow
  }
};

// Equal for nodes and shapes that the same kernels serve in the same time: all but the values and the kept
// blocks.
std::string TimingKey(const ConvSpec& spec, const ConvShape& shape);

// The shape for images of X of that size. Throws InvalidNode if the filter does not fit in.
ConvShape ShapeOf(const ConvSpec& spec, int64_t batch, int64_t in_rows, int64_t in_columns);

// The inputs of one run that are not constant.
struct ConvInputs {
  ConvShape shape;
  const void* x;
  const void* residual;  // null if there is none
  std::vector<int64_t> y_shape;
};

// Reads them and checks their shapes against the node. Throws InvalidNode.
ConvInputs ReadInputs(const ConvSpec& spec, const Ort& ort, const OrtKernelContext* context);

}  // namespace deftonnx
