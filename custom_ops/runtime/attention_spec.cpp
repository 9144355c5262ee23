#include "attention_spec.h"

#include <limits>
#include <string>
#include <vector>

namespace deftonnx {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1024;

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

void ReadRotary(const AttentionSpec& spec, const Tensor& rotary, AttentionCall* call) {
  const std::vector<int64_t>& shape = rotary.shape;
  const bool same = !shape.empty() && shape[0] == call->length;
  if (shape.size() != 2 || shape[1] != spec.head_size || (!same && shape[0] != call->batch * call->length)) {
    Refuse(spec, "rotary has shape " + ShapeText(shape) + ", expected " +
                     ShapeText({call->batch * call->length, spec.head_size}) + " or that of one sequence");
  }
  call->rotary = rotary.data;
  call->rotary_batch = same ? 0 : call->length * spec.head_size;
}

}  // namespace

AttentionSpec ReadAttentionSpec(const Ort& ort, const OrtKernelInfo* info, ElementType type) {
  AttentionSpec spec{};
  spec.op = "DeftAttention";
  spec.type = type;
  const AttributeReader reader(ort, info, spec);
  spec.heads = reader.Size("num_heads");
  spec.kv_heads = reader.Size("num_kv_heads");
  spec.head_size = reader.Size("head_size");
  spec.scale = reader.Real("scale");
  spec.causal = reader.Integer("causal") != 0;
  if (spec.heads % spec.kv_heads != 0) Refuse(spec, "num_heads is no multiple of num_kv_heads");
  if (spec.heads > kMost / 3 / spec.head_size) Refuse(spec, "num_heads and head_size are too large");
  reader.CheckOutputType(type, type, "X");
  spec.has_rotary = ort.HasInput(info, kInputRotary);
  if (spec.has_rotary && spec.head_size % 2 != 0) {
    Refuse(spec, "head_size is not even, as rotary embeddings need it");
  }
  const std::string compute = reader.Text("compute");
  if (compute != "auto") spec.kernel = compute;
  return spec;
}

AttentionCall ReadAttentionCall(const AttentionSpec& spec, const Ort& ort, OrtKernelContext* context) {
  const Tensor x = ort.Input(context, kInputPacked);
  const int64_t features = (spec.heads + 2 * spec.kv_heads) * spec.head_size;
  if (x.shape.size() != 3 || x.shape[2] != features) {
    Refuse(spec, "X has shape " + ShapeText(x.shape) + ", its last of three axes must have " +
                     std::to_string(features));
  }
  AttentionCall call{};
  call.batch = x.shape[0];
  call.length = x.shape[1];
  call.x = x.data;
  if (call.length > kMost) Refuse(spec, "X is too long");
  const auto given = [&](size_t index) {
    return ort.InputCount(context) > index && ort.Input(context, index).type != ElementType::kUndefined;
  };
  if (given(kInputAttentionBias)) ReadBias(spec, ort.Input(context, kInputAttentionBias), &call);
  if (given(kInputRotary)) ReadRotary(spec, ort.Input(context, kInputRotary), &call);
  call.y = ort.Output(context, 0, {call.batch, call.length, spec.heads * spec.head_size});
  return call;
}

}  // namespace deftonnx
