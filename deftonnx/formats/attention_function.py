"""``ai.deftonnx::DeftAttention`` and its ONNX function body: attention of packed queries, keys and values.

    Y = softmax(Q · Kᵀ * scale + bias) · V, head by head

Inputs
    X: (batch, length, (num_heads + 2 * num_kv_heads) * head_size) float32, float16 or bfloat16: queries, keys and
        values, each with the features of a head side by side. On the GPU not float32, and head_size a multiple of 8, at
        most 128.
    bias: (batch or 1, num_heads or 1, length or 1, length) of X's type, may be left out. Rows of -infinity alone give
        zeros.
    rotary: (length or batch * length, head_size) of X's type, may be left out: the cosines of head_size / 2 angles and
        their sines, by which rotary embeddings (arXiv:2104.09864) turn features i and i + head_size / 2 of queries and
        keys. On the GPU head_size is then a multiple of 16.
Output
    Y: (batch, length, num_heads * head_size), of X's type; scores and sums are float32.
Attributes
    num_heads, head_size, scale.
    num_kv_heads: heads of keys and of values, each shared by num_heads / num_kv_heads neighbours among the queries'.
    causal: 1 where no row sees the keys behind it, else 0.
    output_type: TensorProto element type.
    compute: "auto", or the name of the one CUDA kernel to use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from deftonnx.formats.activation import Nodes
from deftonnx.formats.operator_function import (
    attach_functions,
    integer_attribute,
    integers,
    is_operator,
    make_function,
    output_cast,
)

OPERATOR = "DeftAttention"
HEAD_SIZE_STEP, LARGEST_HEAD = 8, 128
"""Head sizes that the CUDA kernels serve: custom_ops/runtime/cuda_attention.cpp."""
ROTARY_STEP = 2 * HEAD_SIZE_STEP
_INPUTS = ("X", "bias", "rotary")
_ATTRIBUTES = ("num_heads", "num_kv_heads", "head_size", "scale", "causal", "output_type", "compute")
_REDUCTIONS_BY_INPUT = 18
"""The opset from which ReduceMax takes its axes as an input."""
_LOWEST = float(np.finfo(np.float32).min)


def attention_attributes(
    num_heads: int,
    head_size: int,
    scale: float,
    output_type: int = TensorProto.FLOAT,
    compute: str = "auto",
    num_kv_heads: int | None = None,
    causal: bool = False,
) -> dict[str, Any]:
    """Return the attributes of a DeftAttention node. num_kv_heads: None for as many as num_heads."""
    return {
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads or num_heads,
        "head_size": head_size,
        "scale": float(scale),
        "causal": int(causal),
        "output_type": output_type,
        "compute": compute,
    }


def is_attention(domain: str | None, operator: str) -> bool:
    """Whether domain::operator is DeftAttention."""
    return is_operator(domain, operator, OPERATOR)


def attach_attention_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every DeftAttention node of `model` its function body in place; return `model`.

    Raises FormatError for an opset under 13.
    """
    return attach_functions(model, OPERATOR, _function)


def _function(node: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    make = helper.make_node
    given = [name for name, value in zip(_INPUTS, node.input, strict=False) if value]
    numbers = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
    shared = numbers["num_heads"] != numbers["num_kv_heads"]
    scale = make("Constant", [], ["scale_value"])
    reference = onnx.AttributeProto(name="value_float", ref_attr_name="scale", type=onnx.AttributeProto.FLOAT)
    scale.attribute.append(reference)
    queries, keys = ("queries_turned", "keys_turned") if "rotary" in given else ("queries", "keys")
    scaled = "causal_scores" if numbers["causal"] else "scaled"
    nodes = [
        make("Cast", ["X"], ["X_float"], to=TensorProto.FLOAT),
        *_sizes(),
        make("Reshape", ["X_float", "apart"], ["X_heads"]),
        make("Transpose", ["X_heads"], ["parts"], perm=[0, 2, 1, 3]),
        make("Split", ["parts", "parts_heads"], ["queries", "keys", "values"], axis=1),
        *(_turned() if "rotary" in given else []),
        make("Transpose", [keys], ["keys_across"], perm=[0, 1, 3, 2]),
        *_product(queries, "keys_across", "products", shared),
        scale,
        make("Mul", ["products", "scale_value"], ["scaled"]),
        *(_causal() if numbers["causal"] else []),
        *(_weights_with_bias(scaled, opset) if "bias" in given else [make("Softmax", [scaled], ["weights"], axis=-1)]),
        *_product("weights", "values", "heads", shared),
        make("Transpose", ["heads"], ["heads_last"], perm=[0, 2, 1, 3]),
        make("Reshape", ["heads_last", "joined"], ["A"]),
        output_cast(),
    ]
    inputs = _INPUTS[: len(node.input)]
    return make_function(OPERATOR, inputs, nodes, _ATTRIBUTES, opset, set(inputs).difference(given))


def _sizes() -> Nodes:
    """The shapes `apart` (batch, length, all heads, head size) and `joined` (batch, length, features); the heads of
    queries, keys and values as `parts_heads`, and single sizes."""
    make = helper.make_node
    single = {"num_heads": "heads_count", "num_kv_heads": "shared_count", "head_size": "size_count"}
    return [
        integers("flat", [-1]),
        *(integer_attribute(name, f"{name}_scalar") for name in single),
        *(make("Reshape", [f"{name}_scalar", "flat"], [count]) for name, count in single.items()),
        make("Mul", ["heads_count", "size_count"], ["features_count"]),
        integers("kept_sizes", [0, 0]),
        make("Concat", ["heads_count", "shared_count", "shared_count"], ["parts_heads"], axis=0),
        make("Concat", ["kept_sizes", "flat", "size_count"], ["apart"], axis=0),
        make("Concat", ["kept_sizes", "features_count"], ["joined"], axis=0),
        make("Shape", ["X"], ["X_shape"]),
        integers("second", [1]),
        make("Gather", ["X_shape", "second"], ["length_count"], axis=0),
    ]


def _product(left: str, right: str, result: str, shared: bool) -> Nodes:
    """left · right of all heads. Those that share a right factor are one: (batch, kv heads, heads of each * length,
    features)."""
    make = helper.make_node
    if not shared:
        return [make("MatMul", [left, right], [result])]
    joint, apart = f"{result}_joint", f"{result}_apart"
    keep = integers(f"{result}_batch", [0])
    return [
        keep,
        make("Div", ["heads_count", "shared_count"], [f"{result}_group"]),
        make("Mul", [f"{result}_group", "length_count"], [f"{result}_rows"]),
        make("Concat", [*keep.output, "shared_count", f"{result}_rows", "flat"], [joint], axis=0),
        make("Concat", [*keep.output, "heads_count", "length_count", "flat"], [apart], axis=0),
        make("Reshape", [left, joint], [f"{result}_left"]),
        make("MatMul", [f"{result}_left", right], [f"{result}_of_groups"]),
        make("Reshape", [f"{result}_of_groups", apart], [result]),
    ]


def _turned() -> Nodes:
    """From `queries`, `keys` and `rotary` to `queries_turned` and `keys_turned`."""
    make = helper.make_node
    nodes = [
        make("Cast", ["rotary"], ["rotary_float"], to=TensorProto.FLOAT),
        make("Concat", ["flat", "second", "length_count", "size_count"], ["rotary_shape"], axis=0),
        make("Reshape", ["rotary_float", "rotary_shape"], ["angles"]),
        integers("two", [2]),
        make("Div", ["size_count", "two"], ["half_count"]),
        make("Concat", ["half_count", "half_count"], ["halves"], axis=0),
        make("Split", ["angles", "halves"], ["cosines", "sines"], axis=-1),
    ]
    for part in ("queries", "keys"):
        nodes += [
            make("Split", [part, "halves"], [f"{part}_1", f"{part}_2"], axis=-1),
            make("Mul", [f"{part}_1", "cosines"], [f"{part}_1_cosines"]),
            make("Mul", [f"{part}_2", "sines"], [f"{part}_2_sines"]),
            make("Sub", [f"{part}_1_cosines", f"{part}_2_sines"], [f"{part}_first"]),
            make("Mul", [f"{part}_2", "cosines"], [f"{part}_2_cosines"]),
            make("Mul", [f"{part}_1", "sines"], [f"{part}_1_sines"]),
            make("Add", [f"{part}_2_cosines", f"{part}_1_sines"], [f"{part}_second"]),
            make("Concat", [f"{part}_first", f"{part}_second"], [f"{part}_turned"], axis=-1),
        ]
    return nodes


def _causal() -> Nodes:
    """From `scaled` to `causal_scores`, -infinity where a key is behind its row."""
    make = helper.make_node
    return [
        make("Constant", [], ["from_zero"], value_int=0),
        make("Constant", [], ["by_one"], value_int=1),
        make("Squeeze", ["length_count"], ["length_scalar"]),
        make("Range", ["from_zero", "length_scalar", "by_one"], ["positions"]),
        make("Unsqueeze", ["positions", "second"], ["rows"]),
        make("LessOrEqual", ["positions", "rows"], ["seen"]),
        make("Constant", [], ["unseen"], value_float=-np.inf),
        make("Where", ["seen", "scaled", "unseen"], ["causal_scores"]),
    ]


def _weights_with_bias(scaled: str, opset: int) -> Nodes:
    """From `scaled` scores and `bias` to `weights`, zeros where all keys of a row are masked."""
    make = helper.make_node
    if opset >= _REDUCTIONS_BY_INPUT:
        largest = [integers("last", [-1]), make("ReduceMax", ["scores", "last"], ["largest"], keepdims=1)]
    else:
        largest = [make("ReduceMax", ["scores"], ["largest"], axes=[-1], keepdims=1)]
    return [
        make("Cast", ["bias"], ["bias_float"], to=TensorProto.FLOAT),
        make("Add", [scaled, "bias_float"], ["scores"]),
        make("Softmax", ["scores"], ["powers"], axis=-1),
        *largest,
        make("Constant", [], ["lowest"], value_float=_LOWEST),
        make("Constant", [], ["zero"], value_float=0.0),
        make("Less", ["largest", "lowest"], ["masked"]),
        make("Where", ["masked", "zero", "powers"], ["weights"]),
    ]
