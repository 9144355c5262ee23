"""``ai.deftonnx::DeftConv`` and its ONNX function body, the operator in standard operators:

    Y = pool(activation(conv(X, value(W) * scale) + bias + residual)), channels last

Inputs
    X: (batch, *image, channels) float32, float16 or bfloat16; the image has one or two axes.
    W: the codes of a PackedWeight, constant. Row n holds the filter of output channel n: tap after tap (the last
        image axis fastest), and within a tap the channels of n's group.
    scale, bias: (N,) float32, constant.
    kept: (group * blocks,) int32, constant: the blocks of the filters that W holds, group after group and ascending;
        empty when it holds all. A block is `block` neighbouring channels at one tap. With C = channels / group / block,
        block c of tap t of group g has the number (g * taps + t) * C + c. Every group keeps equally many.
    residual: like Y, or a scalar 0 for none, as for DeftGemm. It and `kept` may be left off the end.
Output
    Y: (batch, *image, N), of type `output_type`; arithmetic is float32.
Attributes
    format, exponent_bits, layout: how W is packed, as of DeftGemm. channels: of X. K: features of W, those that an
        output reads. N: output channels.
    kernel_shape, strides, pads, dilations, group: as of Conv.
    block: channels of a kept block, a power of two that divides channels / group; 0 when all are kept.
    activation, with alpha and beta: see activation.py. output_type: TensorProto element type.
    pool: [2, 2] where Y has the maxima of squares of 2 x 2 pixels, side by side, without a last row or column that is
        left over: for images of two axes, without a residual. [1, 1], or left off: Y has every pixel.
    compute: "auto", the name of the one CUDA kernel to use, or what the names of several begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from deftonnx.formats.activation import Nodes
from deftonnx.formats.fp8 import FP8
from deftonnx.formats.operator_function import (
    DOMAIN,
    activation_nodes,
    all_nodes,
    attach_functions,
    decode_nodes,
    integer_attribute,
    integers,
    integers_attribute,
    is_operator,
    keeps_blocks,
    make_function,
    output_cast,
    residual_nodes,
    string_attribute,
)
from deftonnx.formats.packed import LAYOUT_VERSION, FormatError, PackedWeight

OPERATOR = "DeftConv"
IMAGE_AXES = (1, 2)
EVERY_PIXEL, SQUARES = (1, 1), (2, 2)
"""What `pool` may be."""
_INPUTS = ("X", "W", "scale", "bias", "kept", "residual")
_WINDOW = {"kernel_shape": "INTS", "strides": "INTS", "pads": "INTS", "dilations": "INTS", "group": "INT"}
_ATTRIBUTES = (
    *("format", "exponent_bits", "layout", "channels", "K", "N", *_WINDOW),
    *("block", "activation", "alpha", "beta", "pool", "output_type", "compute"),
)


@dataclass(frozen=True)
class Window:
    """How a convolution slides, one value for each image axis: the attributes of ONNX's Conv."""

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]  # of all axes' beginnings, then of their ends
    dilations: tuple[int, ...]
    group: int = 1

    @classmethod
    def of(
        cls,
        kernel_shape: Sequence[int],
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        group: int = 1,
    ) -> Window:
        """With Conv's defaults for what is None."""
        axes = len(kernel_shape)
        ones = (1,) * axes
        pads = tuple(pads or (0,) * 2 * axes)
        return cls(tuple(kernel_shape), tuple(strides or ones), pads, tuple(dilations or ones), group)


def conv_attributes(
    packed: PackedWeight,
    window: Window,
    channels: int,
    *,
    block: int = 0,
    activation: str = "none",
    alpha: float = 0.0,
    beta: float = 0.0,
    output_type: int = TensorProto.FLOAT,
    compute: str = "auto",
    pool: Sequence[int] = EVERY_PIXEL,
) -> dict[str, Any]:
    """Return the attributes of a DeftConv node over `packed`, for X of that many channels.

    Raises FormatError for an image of other than one or two axes, for one axis that is pooled, and for format fp8.
    """
    if packed.format == FP8:
        raise FormatError("DeftConv has no format fp8: its activations are not rounded")
    if len(window.kernel_shape) not in IMAGE_AXES:
        raise FormatError(f"DeftConv takes images of one or two axes, not {len(window.kernel_shape)}")
    pooled = tuple(pool) != EVERY_PIXEL
    if pooled and (tuple(pool) != SQUARES or len(window.kernel_shape) != 2):
        raise FormatError(
            f"DeftConv pools images of two axes by [2, 2], not {len(window.kernel_shape)} by {list(pool)}"
        )
    return {
        "format": packed.format,
        "layout": LAYOUT_VERSION,
        "channels": channels,
        "K": packed.K,
        "N": packed.N,
        "kernel_shape": list(window.kernel_shape),
        "strides": list(window.strides),
        "pads": list(window.pads),
        "dilations": list(window.dilations),
        "group": window.group,
        "block": block,
        "activation": activation,
        "alpha": alpha,
        "beta": beta,
        "output_type": output_type,
        "compute": compute,
        **({"pool": list(pool)} if pooled else {}),
    }


def conv_node(inputs: Sequence[str], output: str, attributes: dict[str, Any], name: str = "") -> onnx.NodeProto:
    """Return a DeftConv node; `inputs` name X, W, scale, bias and, if used, the last two."""
    return helper.make_node(OPERATOR, inputs, [output], name=name, domain=DOMAIN, **attributes)


def is_conv(domain: str | None, operator: str) -> bool:
    """Whether domain::operator is DeftConv."""
    return is_operator(domain, operator, OPERATOR)


def attach_conv_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every DeftConv node of `model` its function body in place; return `model`.

    To be called last. Raises FormatError for an opset under 13 and an unknown format or activation.
    """
    nodes = [node for node in all_nodes(model.graph) if is_conv(node.domain, node.op_type)]
    if any(map(_may_pool, nodes)):
        for node in nodes:  # so that they share a body, which takes less to enter than two
            if not _may_pool(node) and _image_axes(node) == len(EVERY_PIXEL):
                node.attribute.append(helper.make_attribute("pool", EVERY_PIXEL))
    return attach_functions(model, OPERATOR, _function)


def _image_axes(node: onnx.NodeProto) -> int:
    for attribute in node.attribute:
        if attribute.name == "kernel_shape":
            return len(attribute.ints)
    raise FormatError(f"node {node.name!r} ({OPERATOR}) lacks the attribute 'kernel_shape'")


def _function(node: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    axes = _image_axes(node)
    channels_first = [0, axes + 1, *range(1, axes + 1)]
    channels_last = [0, *range(2, axes + 2), 1]
    nodes = [
        helper.make_node("Cast", ["X"], ["X_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["X_float"], ["X_first"], perm=channels_first),
        *decode_nodes(node, opset),
        *_scaled_rows(),
        *(_all_blocks() if keeps_blocks(node) else [helper.make_node("Identity", ["filter_rows"], ["all_rows"])]),
        integers("filter_axis", [0]),  # 0: as many as there are
        integers("group_channels", [-1]),
        integers_attribute("kernel_shape", "kernel"),
        helper.make_node("Concat", ["filter_axis", "kernel", "group_channels"], ["filter_shape"], axis=0),
        helper.make_node("Reshape", ["all_rows", "filter_shape"], ["filters_last"]),
        helper.make_node("Transpose", ["filters_last"], ["filters"], perm=channels_first),
        _conv(),
        helper.make_node("Transpose", ["convolved"], ["biased"], perm=channels_last),
        *residual_nodes("biased", present=len(node.input) == len(_INPUTS)),
        *activation_nodes(string_attribute(node, "activation")),
        *(_pool() if _may_pool(node) else []),
        output_cast("pooled" if _may_pool(node) else "A"),
    ]
    return make_function(OPERATOR, _INPUTS[: len(node.input)], nodes, _ATTRIBUTES, opset)


def _may_pool(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "pool" for attribute in node.attribute)


def _pool() -> Nodes:
    """From `A` to `pooled`, channels last, with the calling node's attribute `pool`."""
    maxima = helper.make_node("MaxPool", ["active_first"], ["pooled_first"])
    for name in ("kernel_shape", "strides"):
        maxima.attribute.append(onnx.AttributeProto(name=name, ref_attr_name="pool", type=onnx.AttributeProto.INTS))
    return [
        helper.make_node("Transpose", ["A"], ["active_first"], perm=[0, 3, 1, 2]),
        maxima,
        helper.make_node("Transpose", ["pooled_first"], ["pooled"], perm=[0, 2, 3, 1]),
    ]


def _scaled_rows() -> Nodes:
    """From W_values (N, Kp) and scale to `filter_rows` (N, K)."""
    return [
        integer_attribute("K", "K_scalar"),
        integers("flat", [-1]),
        integers("first", [0]),
        integers("feature_axis", [1]),
        integers("column", [-1, 1]),
        helper.make_node("Reshape", ["K_scalar", "flat"], ["K"]),
        helper.make_node("Slice", ["W_values", "first", "K", "feature_axis"], ["W_rows"]),
        helper.make_node("Reshape", ["scale", "column"], ["scale_column"]),
        helper.make_node("Mul", ["W_rows", "scale_column"], ["filter_rows"]),
    ]


def _all_blocks() -> Nodes:
    """From `filter_rows` (N, K) and `kept` to `all_rows` (N, taps * channels / group), zeros where nothing is kept."""
    node = helper.make_node
    scalars = ("group", "block", "channels")
    return [
        *(integer_attribute(name, f"{name}_scalar") for name in scalars),
        *(node("Reshape", [f"{name}_scalar", "flat"], [f"{name}_size"]) for name in scalars),
        integers("infer", [-1]),
        # (N, K) to (group * blocks, outputs, block), one entry for each number in kept
        node("Shape", ["filter_rows"], ["rows_shape"]),
        node("Slice", ["rows_shape", "first", "feature_axis"], ["N"]),
        node("Div", ["N", "group_size"], ["outputs"]),
        node("Concat", ["group_size", "outputs", "infer", "block_size"], ["split_shape"], axis=0),
        node("Reshape", ["filter_rows", "split_shape"], ["split"]),
        node("Transpose", ["split"], ["split_blocks"], perm=[0, 2, 1, 3]),
        node("Concat", ["infer", "outputs", "block_size"], ["entry_shape"], axis=0),
        node("Reshape", ["split_blocks", "entry_shape"], ["entries"]),
        # into zeros of (taps * channels / block, outputs, block), and back
        integers_attribute("kernel_shape", "kernel_sizes"),
        node("ReduceProd", ["kernel_sizes"], ["taps"], keepdims=1),
        node("Mul", ["taps", "channels_size"], ["features"]),
        node("Div", ["features", "block_size"], ["block_count"]),
        node("Concat", ["block_count", "outputs", "block_size"], ["dense_shape"], axis=0),
        node("ConstantOfShape", ["dense_shape"], ["zeros"]),
        node("Cast", ["kept"], ["kept_long"], to=TensorProto.INT64),
        node("Reshape", ["kept_long", "column"], ["kept_index"]),
        node("ScatterND", ["zeros", "kept_index", "entries"], ["dense_blocks"]),
        node("Concat", ["group_size", "infer", "outputs", "block_size"], ["group_shape"], axis=0),
        node("Reshape", ["dense_blocks", "group_shape"], ["grouped"]),
        node("Transpose", ["grouped"], ["grouped_rows"], perm=[0, 2, 1, 3]),
        node("Concat", ["N", "infer"], ["row_shape"], axis=0),
        node("Reshape", ["grouped_rows", "row_shape"], ["all_rows"]),
    ]


def _conv() -> onnx.NodeProto:
    """From X_first, filters and bias to `convolved`, with the calling node's window."""
    node = helper.make_node("Conv", ["X_first", "filters", "bias"], ["convolved"])
    for name, kind in _WINDOW.items():
        kind_number = onnx.AttributeProto.AttributeType.Value(kind)
        node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=kind_number))
    return node
