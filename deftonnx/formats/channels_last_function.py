"""``ai.deftonnx::DeftChannelsLast`` and its ONNX function body: images with channels last from channels first.

Input
    X: (batch, channels, *image) float32, float16 or bfloat16; the image has one or two axes.
Output
    Y: (batch, *image, channels), of X's type.
Attributes
    image_axes: 1 or 2. output_type: TensorProto element type.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from deftonnx.formats.operator_function import (
    attach_functions,
    is_operator,
    make_function,
    output_cast,
)
from deftonnx.formats.packed import FormatError

OPERATOR = "DeftChannelsLast"
_ATTRIBUTES = ("image_axes", "output_type")


def channels_last_attributes(image_axes: int, output_type: int = TensorProto.FLOAT) -> dict[str, Any]:
    """Return the attributes of a DeftChannelsLast node.

    Raises FormatError for an image of other than one or two axes.
    """
    if image_axes not in (1, 2):
        raise FormatError(f"{OPERATOR} takes images of one or two axes, not {image_axes}")
    return {"image_axes": image_axes, "output_type": output_type}


def is_channels_last(domain: str | None, operator: str) -> bool:
    """Whether domain::operator is DeftChannelsLast."""
    return is_operator(domain, operator, OPERATOR)


def attach_channels_last_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every DeftChannelsLast node of `model` its function body in place; return `model`.

    Raises FormatError for an opset under 13.
    """
    return attach_functions(model, OPERATOR, _function)


def _image_axes(node: onnx.NodeProto) -> int:
    axes = next((a.i for a in node.attribute if a.name == "image_axes"), 0)
    return int(channels_last_attributes(axes)["image_axes"])


def _function(node: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    axes = _image_axes(node)
    nodes = [
        helper.make_node("Cast", ["X"], ["X_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["X_float"], ["A"], perm=[0, *range(2, axes + 2), 1]),
        output_cast(),
    ]
    return make_function(OPERATOR, ["X"], nodes, _ATTRIBUTES, opset)
