#include "attention_spec.h"

#include <limits>
#include <string>
#include <vector>

namespace deftonnx {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

// Sets the bias and its strides.
void ReadBias(const AttentionSpec& spec, const Tensor& bias, AttentionCall* call) {
  const std::vector<int64_t>& shape = bias.shape;
  const auto fits = [&](size_t axis, int64_t size) { return shape[axis] == 1 || shape[axis] == size; };
  if (shape.size() != 4 || !fits(0, call->batch) || !fits(1, spec.heads) || !fits(2, call->length) ||
      shape[3] != call->length) {
    Refuse(spec, "bias has shape " + ShapeText(shape) + ", expected " +
                     ShapeText({call->batch, spec.heads, call->length, call->length}) +
                     " or 1 for any of the first three");
  }
  int64_t stride = shape[3];
  int64_t* strides[] = {&call->bias_batch, &call->bias_head, &call->bias_row};
  for (int axis = 2; axis >= 0; --axis) {
    *strides[axis] = shape[axis] == 1 ? 0 : stride;
    stride *= shape[axis];
  }
  call->bias = bias.data;
}

}  // namespace

AttentionSpec ReadAttentionSpec(const Ort& ort, const OrtKernelInfo* info, ElementType type) {
  AttentionSpec spec{};
  spec.op = "DeftAttention";
  spec.type = type;
  const AttributeReader reader(ort, info, spec);
  spec.heads = reader.Size("num_heads");
  spec.head_size = reader.Size("head_size");
  spec.scale = reader.Real("scale");
  if (spec.heads > kMost / 3 / spec.head_size) Refuse(spec, "num_heads and head_size are too large");
  if (reader.Integer("output_type") != static_cast<int64_t>(type)) {
    Refuse(spec, "output_type is not the type of X");
  }
  const std::string compute = reader.Text("compute");
  if (compute != "auto") spec.kernel = compute;
  return spec;
}

AttentionCall ReadAttentionCall(const AttentionSpec& spec, const Ort& ort, OrtKernelContext* context) {
  const Tensor x = ort.Input(context, 0);
  const int64_t features = spec.heads * spec.head_size;
  if (x.shape.size() != 3 || x.shape[2] != 3 * features) {
    Refuse(spec, "X has shape " + ShapeText(x.shape) + ", its last of three axes must have " +
                     std::to_string(3 * features));
  }
  AttentionCall call{x.shape[0], x.shape[1], x.data, nullptr, 0, 0, 0, nullptr};
  if (call.length > kMost) Refuse(spec, "X is too long");
  if (ort.InputCount(context) > 1) ReadBias(spec, ort.Input(context, 1), &call);
  call.y = ort.Output(context, 0, {call.batch, call.length, features});
  return call;
}

}  // namespace deftonnx
