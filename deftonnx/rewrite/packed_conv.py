"""From a Conv or KeptConv to a DeftConv, packed and with channels last.

`refuse` says which convolutions DeftConv cannot serve. `deft_conv` makes the node of the others between tensors that
have channels last already: who calls it puts transposes where channels-last regions begin and end (`channels_last` and
`channels_first` are their permutations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from deftonnx.formats import pack_weight
from deftonnx.formats.conv_function import IMAGE_AXES, OPERATOR, Window, conv_attributes
from deftonnx.formats.functions import KEPT_CONV
from deftonnx.formats.gemm_function import weight_array
from deftonnx.formats.operator_function import DOMAIN, OLDEST_OPSET
from deftonnx.layers.conv import ConvLayer
from deftonnx.layers.conv import refuse as refuse_parameters
from deftonnx.layers.linear import stored, stored_as, unused_name

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class End:
    """What a DeftConv does with its sums before it stores them."""

    activation: str = "none"
    alpha: float = 0.0
    beta: float = 0.0
    residual: gs.Tensor | None = None  # like Y


@dataclass(frozen=True)
class _Filters:
    weight: Array  # (K, N): the kept features of every output's filter, tap after tap
    bias: Array  # (N,)
    kept: Array | None  # (groups * blocks,) ascending block numbers, None: all
    block: int
    kernel: tuple[int, ...]
    groups: int
    channels: int  # of X


def channels_last(axes: int) -> list[int]:
    """The Transpose from (batch, channels, *image) to (batch, *image, channels)."""
    return [0, *range(2, axes + 2), 1]


def channels_first(axes: int) -> list[int]:
    """The Transpose from (batch, *image, channels) to (batch, channels, *image)."""
    return [0, axes + 1, *range(1, axes + 1)]


def refuse(node: gs.Node, opset: int, image: Sequence[int | str | None] | None = None) -> str | None:
    """Why the Conv or KeptConv `node` cannot be a DeftConv, or None. `image`: what is known of X's image axes."""
    if opset < OLDEST_OPSET:
        return f"packed formats need opset {OLDEST_OPSET}, the model has {opset}"
    if node.op == "Conv" and (refusal := refuse_parameters(node)) is not None:
        return refusal.reason
    axes = len(_kernel(node))
    if axes not in IMAGE_AXES:
        return f"its image has {axes} axes"
    if node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        strides = node.attrs.get("strides") or [1] * axes
        known = image is not None and all(isinstance(size, int) for size in image)
        if not known and any(stride > 1 for stride in strides):
            return "its padding depends on the size of its input, which is not known"
    return None


def deft_conv(
    node: gs.Node,
    format_name: str,
    x: gs.Tensor,
    y: gs.Tensor,
    *,
    image: Sequence[int] | None = None,
    end: End | None = None,
    output_type: int = TensorProto.FLOAT,
) -> gs.Node:
    """Return a DeftConv that computes what `node`, which `refuse` accepts, does: from `x` to `y`, channels last.

    format_name: of the packed weight. image: X's image axes, where `node` pads to the input's size. output_type:
    TensorProto element type of x, y and the residual. The node is not yet in a graph, and `node` is left alone.
    """
    end = end or End()
    filters = _filters(node)
    window = _window(node, filters, image)
    packed = pack_weight(filters.weight, format_name)
    inputs: list[gs.Tensor] = [
        x,
        stored_as(unused_name(f"{node.name}/packed"), weight_array(packed)),
        gs.Constant(unused_name(f"{node.name}/packed_scale"), packed.scale),
        gs.Constant(unused_name(f"{node.name}/packed_bias"), filters.bias.astype(np.float32)),
    ]
    if filters.kept is not None or end.residual is not None:
        kept = np.zeros(0, np.int32) if filters.kept is None else filters.kept.astype(np.int32)
        inputs.append(gs.Constant(unused_name(f"{node.name}/kept"), kept))
    if end.residual is not None:
        inputs.append(end.residual)
    attributes = conv_attributes(
        packed,
        window,
        filters.channels,
        block=filters.block,
        activation=end.activation,
        alpha=end.alpha,
        beta=end.beta,
        output_type=output_type,
    )
    return gs.Node(OPERATOR, unused_name(node.name), attributes, inputs, [y], domain=DOMAIN)


def encode(node: gs.Node, format_name: str) -> None:
    """Pack the weight of a DeftConv, which is fp32, as `format_name`, in place."""
    rows = stored(node.inputs[1]).view(np.float32)  # (N, Kp)
    packed = pack_weight(rows[:, : node.attrs["K"]].T, format_name)
    node.inputs[1] = stored_as(unused_name(f"{node.name}/encoded"), weight_array(packed))
    node.inputs[2] = gs.Constant(unused_name(f"{node.name}/encoded_scale"), packed.scale)
    node.attrs["format"] = packed.format


def _kernel(node: gs.Node) -> tuple[int, ...]:
    if node.op == KEPT_CONV:
        return tuple(node.attrs["kernel_shape"])
    return tuple(node.inputs[1].shape[2:])


def _window(node: gs.Node, filters: _Filters, image: Sequence[int] | None) -> Window:
    attrs, axes = node.attrs, len(filters.kernel)
    strides, dilations = attrs.get("strides") or [1] * axes, attrs.get("dilations") or [1] * axes
    pads = list(attrs.get("pads") or [0] * 2 * axes)
    auto = attrs.get("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0] * 2 * axes
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = same_pads(auto, filters.kernel, strides, dilations, image)
    return Window.of(filters.kernel, strides, pads, dilations, filters.groups)


def same_pads(
    auto: str, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], image: Sequence[int] | None
) -> list[int]:
    """The pads of `auto_pad` SAME_UPPER or SAME_LOWER for an image of that size, None: unknown, with strides of 1."""
    begins, ends = [], []
    # where the stride is 1, the padding is the same for every size
    for size, k, stride, dilation in zip(image or [1 << 30] * len(kernel), kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return begins + ends


def _filters(node: gs.Node) -> _Filters:
    return _kept_filters(node) if node.op == KEPT_CONV else _all_filters(node)


def _all_filters(node: gs.Node) -> _Filters:
    layer = ConvLayer(node)
    weight = layer.weight().transpose(1, 0, 2).reshape(layer.K, layer.N)
    bias = layer.bias()
    return _Filters(
        weight,
        np.zeros(layer.N) if bias is None else bias,
        None,
        0,
        layer.kernel,
        layer.groups,
        layer.groups * layer.channels,
    )


def _kept_filters(node: gs.Node) -> _Filters:
    """Groups that keep fewer blocks than the fullest get blocks of zeros: every group's list is equally long."""
    weight, bias, numbers = (node.inputs[i].values for i in (1, 2, 3))  # (blocks, width, outputs), (N,), (blocks,)
    groups, taps, channels, outputs = node.attrs["dense_shape"]
    width = weight.shape[1]
    total = taps * channels // width  # blocks of a group
    dense = np.zeros((groups, total, width, outputs), np.result_type(weight.dtype, np.float32))
    dense.reshape(groups * total, width, outputs)[numbers] = weight
    is_kept = np.zeros((groups, total), dtype=bool)
    is_kept.reshape(-1)[numbers] = True
    most = max(1, int(is_kept.sum(1).max()))
    for row in is_kept:
        row[np.flatnonzero(~row)[: most - int(row.sum())]] = True
    rows = dense[is_kept].reshape(groups, most * width, outputs)
    return _Filters(
        rows.transpose(1, 0, 2).reshape(most * width, groups * outputs),
        bias,
        np.flatnonzero(is_kept),
        width,
        tuple(node.attrs["kernel_shape"]),
        groups,
        groups * channels,
    )
