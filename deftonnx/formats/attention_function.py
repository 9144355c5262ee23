"""``ai.deftonnx::DeftAttention`` and its ONNX function body: attention of packed queries, keys and values.

    Y = softmax(Q · Kᵀ * scale + bias) · V, head by head

Inputs
    X: (batch, length, 3 * num_heads * head_size) float32, float16 or bfloat16: queries, keys and values, each with the
        features of a head side by side. On the GPU not float32, and head_size a multiple of 8, at most 64.
    bias: (batch or 1, num_heads or 1, length or 1, length) of X's type, may be left off the end. Rows of -infinity
        alone give zeros.
Output
    Y: (batch, length, num_heads * head_size), of X's type; scores and sums are float32.
Attributes
    num_heads, head_size, scale. output_type: TensorProto element type.
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
HEAD_SIZE_STEP, LARGEST_HEAD = 8, 64
"""Head sizes that the CUDA kernels serve: custom_ops/runtime/cuda_attention.cpp."""
_INPUTS = ("X", "bias")
_ATTRIBUTES = ("num_heads", "head_size", "scale", "output_type", "compute")
_REDUCTIONS_BY_INPUT = 18
"""The opset from which ReduceMax takes its axes as an input."""
_LOWEST = float(np.finfo(np.float32).min)


def attention_attributes(
    num_heads: int,
    head_size: int,
    scale: float,
    output_type: int = TensorProto.FLOAT,
    compute: str = "auto",
) -> dict[str, Any]:
    """Return the attributes of a DeftAttention node."""
    return {
        "num_heads": num_heads,
        "head_size": head_size,
        "scale": float(scale),
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
    has_bias = len(node.input) == len(_INPUTS)
    scale = make("Constant", [], ["scale_value"])
    reference = onnx.AttributeProto(name="value_float", ref_attr_name="scale", type=onnx.AttributeProto.FLOAT)
    scale.attribute.append(reference)
    nodes = [
        make("Cast", ["X"], ["X_float"], to=TensorProto.FLOAT),
        *_sizes(),
        make("Reshape", ["X_float", "apart"], ["X_heads"]),
        make("Transpose", ["X_heads"], ["parts"], perm=[2, 0, 3, 1, 4]),
        *_part(0, "queries"),
        *_part(1, "keys"),
        *_part(2, "values"),
        make("Transpose", ["keys"], ["keys_across"], perm=[0, 1, 3, 2]),
        make("MatMul", ["queries", "keys_across"], ["products"]),
        scale,
        make("Mul", ["products", "scale_value"], ["scaled"]),
        *(_weights_with_bias(opset) if has_bias else [make("Softmax", ["scaled"], ["weights"], axis=-1)]),
        make("MatMul", ["weights", "values"], ["heads"]),
        make("Transpose", ["heads"], ["heads_last"], perm=[0, 2, 1, 3]),
        make("Reshape", ["heads_last", "joined"], ["A"]),
        output_cast(),
    ]
    return make_function(OPERATOR, _INPUTS[: len(node.input)], nodes, _ATTRIBUTES, opset)


def _sizes() -> Nodes:
    """The shapes `apart` (batch, length, 3, heads, head size) and `joined` (batch, length, features)."""
    make = helper.make_node
    return [
        integer_attribute("num_heads", "heads_scalar"),
        integer_attribute("head_size", "size_scalar"),
        integers("flat", [-1]),
        make("Reshape", ["heads_scalar", "flat"], ["heads_count"]),
        make("Reshape", ["size_scalar", "flat"], ["size_count"]),
        make("Mul", ["heads_count", "size_count"], ["features_count"]),
        integers("kept_sizes", [0, 0]),
        integers("three", [3]),
        make("Concat", ["kept_sizes", "three", "heads_count", "size_count"], ["apart"], axis=0),
        make("Concat", ["kept_sizes", "features_count"], ["joined"], axis=0),
    ]


def _part(index: int, result: str) -> Nodes:
    """One of queries, keys and values: (batch, heads, length, head size)."""
    return [
        helper.make_node("Constant", [], [f"{result}_index"], value_int=index),
        helper.make_node("Gather", ["parts", f"{result}_index"], [result], axis=0),
    ]


def _weights_with_bias(opset: int) -> Nodes:
    """From `scaled` and `bias` to `weights`, zeros where all keys of a row are masked."""
    make = helper.make_node
    if opset >= _REDUCTIONS_BY_INPUT:
        largest = [integers("last", [-1]), make("ReduceMax", ["scores", "last"], ["largest"], keepdims=1)]
    else:
        largest = [make("ReduceMax", ["scores"], ["largest"], axes=[-1], keepdims=1)]
    return [
        make("Cast", ["bias"], ["bias_float"], to=TensorProto.FLOAT),
        make("Add", ["scaled", "bias_float"], ["scores"]),
        make("Softmax", ["scores"], ["powers"], axis=-1),
        *largest,
        make("Constant", [], ["lowest"], value_float=_LOWEST),
        make("Constant", [], ["zero"], value_float=0.0),
        make("Less", ["largest", "lowest"], ["masked"]),
        make("Where", ["masked", "zero", "powers"], ["weights"]),
    ]
