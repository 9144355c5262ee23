"""``ai.deftonnx::DeftPool`` and its ONNX function body: pooling and local response normalisation, channels last.

Input
    X: (batch, *image, channels) float32, float16 or bfloat16; the image has one or two axes.
Output
    Y: (batch, *image, channels), of X's type; sums are float32.
Attributes
    kind: "max"; "average" of the pixels inside the image; "average_padded", of those inside the padded image;
        "normalise", X / (bias + alpha * mean of squares)^beta with zeros outside, over the window or `size` channels.
    kernel_shape, strides, pads, dilations, ceil_mode: as of MaxPool and AveragePool. Zeros as kernel_shape stand for
        the whole image.
    size: channels that a normalisation sees, as of LRN, odd; 1 if the window is one of the image.
    alpha, beta, bias: of a normalisation. output_type: TensorProto element type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

from deftonnx.formats.activation import Nodes
from deftonnx.formats.operator_function import (
    attach_functions,
    is_operator,
    make_function,
    output_cast,
    string_attribute,
)
from deftonnx.formats.packed import FormatError

OPERATOR = "DeftPool"
MAX, AVERAGE, AVERAGE_PADDED, NORMALISE = KINDS = ("max", "average", "average_padded", "normalise")
DILATED_AVERAGES = 19
"""The opset from which AveragePool has dilations."""
_ATTRIBUTES = (
    *("kind", "kernel_shape", "strides", "pads", "dilations", "ceil_mode"),
    *("size", "alpha", "beta", "bias", "output_type"),
)


def pool_attributes(
    kind: str,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    *,
    ceil_mode: bool = False,
    size: int = 1,
    alpha: float = 0.0,
    beta: float = 0.0,
    bias: float = 1.0,
    output_type: int = TensorProto.FLOAT,
) -> dict[str, Any]:
    """Return the attributes of a DeftPool node, with ONNX's defaults for what is None.

    Raises FormatError for an unknown kind, and an image of other than one or two axes.
    """
    axes = len(kernel_shape)
    if kind not in KINDS:
        raise FormatError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    if axes not in (1, 2):
        raise FormatError(f"DeftPool takes images of one or two axes, not {axes}")
    return {
        "kind": kind,
        "kernel_shape": list(kernel_shape),
        "strides": list(strides or (1,) * axes),
        "pads": list(pads or (0,) * 2 * axes),
        "dilations": list(dilations or (1,) * axes),
        "ceil_mode": int(ceil_mode),
        "size": size,
        "alpha": alpha,
        "beta": beta,
        "bias": bias,
        "output_type": output_type,
    }


def is_pool(domain: str | None, operator: str) -> bool:
    """Whether domain::operator is DeftPool."""
    return is_operator(domain, operator, OPERATOR)


def attach_pool_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every DeftPool node of `model` its function body in place; return `model`.

    Raises FormatError for an opset under 13 and an unknown kind.
    """
    return attach_functions(model, OPERATOR, _function)


def _integers(node: onnx.NodeProto, name: str) -> list[int]:
    for attribute in node.attribute:
        if attribute.name == name:
            return list(attribute.ints) or [attribute.i]
    raise FormatError(f"node {node.name!r} ({OPERATOR}) lacks the attribute {name!r}")


def _function(node: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    axes = len(_integers(node, "kernel_shape"))
    kind = string_attribute(node, "kind")
    if kind not in _BODIES:
        raise FormatError(f"unknown kind {kind!r}; known: {', '.join(_BODIES)}")
    nodes = [
        helper.make_node("Cast", ["X"], ["X_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["X_float"], ["first"], perm=[0, axes + 1, *range(1, axes + 1)]),
        *_BODIES[kind](node, opset),
        helper.make_node("Transpose", ["pooled"], ["A"], perm=[0, *range(2, axes + 2), 1]),
        output_cast(),
    ]
    return make_function(OPERATOR, ["X"], nodes, _ATTRIBUTES, opset)


def _windowed(operator: str, source: str, result: str, references: Sequence[str], **fixed: Any) -> onnx.NodeProto:
    """A pooling whose attributes named in `references` are those of the calling node."""
    node = helper.make_node(operator, [source], [result], **fixed)
    for name in references:
        kind = AttributeProto.INT if name == "ceil_mode" else AttributeProto.INTS
        node.attribute.append(AttributeProto(name=name, ref_attr_name=name, type=kind))
    return node


def _max(node: onnx.NodeProto, opset: int) -> Nodes:
    if not _integers(node, "kernel_shape")[0]:
        return [helper.make_node("GlobalMaxPool", ["first"], ["pooled"])]
    references = ("kernel_shape", "strides", "pads", "dilations", "ceil_mode")
    return [_windowed("MaxPool", "first", "pooled", references)]


def _average(node: onnx.NodeProto, opset: int) -> Nodes:
    if not _integers(node, "kernel_shape")[0]:
        return [helper.make_node("GlobalAveragePool", ["first"], ["pooled"])]
    padded = int(string_attribute(node, "kind") == AVERAGE_PADDED)
    references = ("kernel_shape", "strides", "pads", "ceil_mode")
    dilations = ("dilations",) if opset >= DILATED_AVERAGES else ()
    return [_windowed("AveragePool", "first", "pooled", (*references, *dilations), count_include_pad=padded)]


def _normalise(node: onnx.NodeProto, opset: int) -> Nodes:
    if _integers(node, "size")[0] > 1:
        node = helper.make_node("LRN", ["first"], ["pooled"])
        node.attribute.append(AttributeProto(name="size", ref_attr_name="size", type=AttributeProto.INT))
        for name in ("alpha", "beta", "bias"):
            node.attribute.append(AttributeProto(name=name, ref_attr_name=name, type=AttributeProto.FLOAT))
        return [node]
    return [
        helper.make_node("Mul", ["first", "first"], ["squares"]),
        _windowed("AveragePool", "squares", "mean", ("kernel_shape", "pads"), count_include_pad=1),
        *(_number(name) for name in ("alpha", "beta", "bias")),
        helper.make_node("Mul", ["mean", "alpha_value"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias_value"], ["base"]),
        helper.make_node("Pow", ["base", "beta_value"], ["divisor"]),
        helper.make_node("Div", ["first", "divisor"], ["pooled"]),
    ]


def _number(name: str) -> onnx.NodeProto:
    """A constant float32 scalar, the calling node's attribute `name`."""
    node = helper.make_node("Constant", [], [f"{name}_value"])
    node.attribute.append(AttributeProto(name="value_float", ref_attr_name=name, type=AttributeProto.FLOAT))
    return node


_BODIES: dict[str, Callable[[onnx.NodeProto, int], Nodes]] = {
    MAX: _max,
    AVERAGE: _average,
    AVERAGE_PADDED: _average,
    NORMALISE: _normalise,
}
