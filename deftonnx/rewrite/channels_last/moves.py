"""Standard operators that work with channels last as well: each function rewrites one node, or leaves it alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import replace_constant, unused_name
from deftonnx.rewrite.absorb.elementwise import BROADCAST, UNARY
from deftonnx.rewrite.absorb.parameters import integers
from deftonnx.rewrite.channels_last.region import Region
from deftonnx.rewrite.packed_conv import channels_last

Move = Callable[[Region, gs.Node], None]
BINARY = {*BROADCAST} - {"BitShift"}
FINITE = {
    *("Abs", "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Neg", "Relu"),
    *("Selu", "Sigmoid", "Softplus", "Softsign", "Tanh"),
}
"""Functions of finite values that are finite: filled tensors pass through them."""
_SOFTMAX_ALONG_ONE_AXIS = 13


def unary(region: Region, node: gs.Node) -> None:
    """Only the first input has channels; Clip's bounds are numbers."""
    y = node.outputs[0]
    if y.shape is not None and len(node.outputs) == 1:
        source, extra = region.filled(node.inputs[0]) if node.op in FINITE else (region.last(node.inputs[0]), 0)
        node.inputs = [source, *node.inputs[1:]]
        node.outputs = [region.outputs(y, extra)]


def binary(region: Region, node: gs.Node) -> None:
    """All operands move, constants with the dimensions that they are broadcast to."""
    y = node.outputs[0]
    if y.shape is None or any(isinstance(t, gs.Constant) and len(t.shape) > len(y.shape) for t in node.inputs):
        return
    node.inputs = [region.last(t, len(y.shape)) for t in node.inputs]
    node.outputs = [region.outputs(y)]


def concat(region: Region, node: gs.Node) -> None:
    """The joined axis moves."""
    if not any(isinstance(t, gs.Constant) for t in node.inputs):
        _along_axis(region, node, node.attrs["axis"])


def softmax(region: Region, node: gs.Node) -> None:
    """Along one axis, which moves; before opset 13 it was along several."""
    if region.graph.opset >= _SOFTMAX_ALONG_ONE_AXIS:
        _along_axis(region, node, node.attrs.get("axis", -1))


def split(region: Region, node: gs.Node) -> None:
    """The divided axis moves."""
    if all(t.shape is not None for t in node.outputs):
        _along_axis(region, node, node.attrs.get("axis", 0))


def gather(region: Region, node: gs.Node) -> None:
    """Constant positions along an axis, which moves."""
    if isinstance(node.inputs[1], gs.Constant) and len(node.inputs[1].shape) == 1:
        _along_axis(region, node, node.attrs.get("axis", 0), first_only=True)


def slice_(region: Region, node: gs.Node) -> None:
    """The axes are named, and each moves."""
    x, y = node.inputs[0], node.outputs[0]
    starts, axes = integers(node, "starts", 1), integers(node, "axes", 3)
    if y.shape is None or starts is None or not all(isinstance(t, gs.Constant) for t in node.inputs[1:] if t.name):
        return
    rank = len(x.shape)
    named = range(len(starts)) if axes is None else axes
    moved = [channels_last(rank - 2).index(axis % rank) for axis in named]
    if "starts" in node.attrs:
        node.attrs["axes"] = moved
        node.inputs = [region.last(x)]
    else:
        constant = gs.Constant(unused_name(f"{node.name}/axes"), np.array(moved, np.int64))
        node.inputs = [region.last(x), *node.inputs[1:3], constant, *node.inputs[4:]]
    node.outputs = [region.outputs(y)]


def pad(region: Region, node: gs.Node) -> None:
    """Constant amounts for every axis move."""
    y, pads = node.outputs[0], integers(node, "pads", 1)
    if y.shape is None or pads is None or len(pads) != 2 * len(y.shape) or len(node.inputs) > 3:
        return
    order = channels_last(len(y.shape) - 2)
    moved = np.array(pads).reshape(2, -1)[:, order].reshape(-1)
    if "pads" in node.attrs:
        node.attrs["pads"] = moved.tolist()
    else:
        replace_constant(node, 1, moved.astype(np.int64))
    node.inputs = [region.last(node.inputs[0]), *node.inputs[1:]]
    node.outputs = [region.outputs(y)]


def resize(region: Region, node: gs.Node) -> None:
    """Constant scales or sizes for every axis move. ONNX Runtime interpolates only between the last two axes."""
    y = node.outputs[0]
    rank = len(node.inputs[0].shape)
    fixed = all(isinstance(t, gs.Constant) for t in node.inputs[1:] if t.name)
    if y.shape is None or not fixed or node.attrs.get("mode", "nearest") != "nearest" or "axes" in node.attrs:
        return
    if any(t.name and t.values.size not in (0, rank) for t in node.inputs[1:]):
        return
    order = channels_last(rank - 2)
    for index in range(1, len(node.inputs)):
        if node.inputs[index].name and node.inputs[index].values.size:
            replace_constant(node, index, node.inputs[index].values[order])
    node.inputs = [region.last(node.inputs[0]), *node.inputs[1:]]
    node.outputs = [region.outputs(y)]


def _along_axis(region: Region, node: gs.Node, axis: int, first_only: bool = False) -> None:
    if any(t.shape is None for t in node.outputs):
        return
    rank = len(node.outputs[0].shape)
    node.attrs["axis"] = channels_last(rank - 2).index(axis % rank)
    moving = node.inputs[:1] if first_only or node.op == "Split" else node.inputs
    node.inputs = [*(region.last(t) for t in moving), *node.inputs[len(moving) :]]
    node.outputs = [region.outputs(t) for t in list(node.outputs)]


MOVES: dict[str, Move] = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(BINARY, binary),
    "Concat": concat,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "Split": split,
    "Gather": gather,
    "Slice": slice_,
    "Pad": pad,
    "Resize": resize,
}
