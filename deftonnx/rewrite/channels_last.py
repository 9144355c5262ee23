"""Convolution regions with channels last: every Conv that pays is a DeftConv, transposes stay at the edges.

1. A DeftConv reads and writes (batch, *image, channels), between two transposes.
2. Elementwise operators, Concat and global pooling behind it move inside, so that transposes meet and cancel.

What a region has no channels-last operator for (MaxPool, AveragePool) stays between transposes; ONNX Runtime cancels
these against its own where a session prefers channels last (`prefer_nhwc`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite import packed_conv
from deftonnx.rewrite.absorb.elementwise import UNARY
from deftonnx.rewrite.functions import KEPT_CONV
from deftonnx.rewrite.packed_conv import channels_first, channels_last

ALIGNMENT = 8
"""Channels of 16 bits that one load brings; fewer input channels are filled up with zeros."""
BINARY = {"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum", "PRelu"}
AXES_AS_INPUT = 18
"""The opset from which ReduceMean has its axes as an input."""


def to_channels_last(graph: gs.Graph, format_name: str) -> dict[str, gs.Node]:
    """Rewrite in place; the DeftConv that each convolution has become, by the convolution's name.

    Shapes have to be known where they can be. Weights are packed as `format_name`.
    """
    region = _Region(graph)
    made = {}
    for node in list(graph.nodes):
        if (node.op == "Conv" and is_standard(node)) or node.op == KEPT_CONV:
            if _pays(node, graph.opset):
                made[node.name] = region.convolution(node, format_name)
        elif is_standard(node) and (move := _MOVES.get(node.op)) is not None and region.reads_one(node):
            move(region, node)
    if made:
        graph.cleanup(remove_unused_graph_inputs=False).toposort()
    return made


def _pays(node: gs.Node, opset: int) -> bool:
    """True where DeftConv can serve `node` with whole loads of channels."""
    x, y = node.inputs[0], node.outputs[0]
    if x.shape is None or y.shape is None or x.dtype != np.float32 or y.dtype not in (None, np.float32):
        return False
    if packed_conv.refuse(node, opset, list(x.shape)[2:]) is not None:
        return False
    groups, outputs, channels = node.attrs.get("group", 1), y.shape[1], x.shape[1]
    if not isinstance(outputs, int) or not isinstance(channels, int) or outputs % ALIGNMENT:
        return False
    return groups == 1 or (channels // groups) % ALIGNMENT == (outputs // groups) % ALIGNMENT == 0


class _Region:
    """`last` maps tensors to what they are with channels last."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.made: dict[int, gs.Variable] = {}  # by a node that works with channels last
        self.transposed: dict[int, gs.Variable] = {}

    def reads_one(self, node: gs.Node) -> bool:
        """True where an input of `node` has been made with channels last, and all its inputs can be."""
        rank = next((len(t.shape) for t in node.inputs if id(t) in self.made and t.shape is not None), None)
        varying = [t for t in node.inputs if t.name and not isinstance(t, gs.Constant)]
        return rank is not None and all(t.shape is not None and len(t.shape) == rank for t in varying)

    def last(self, tensor: gs.Tensor, rank: int) -> gs.Tensor:
        """`tensor` with channels last; a constant is one that is broadcast to `rank` dimensions."""
        axes = rank - 2
        if isinstance(tensor, gs.Constant):
            values = tensor.values.reshape((1,) * (rank - tensor.values.ndim) + tensor.values.shape)
            moved = np.ascontiguousarray(values.transpose(channels_last(axes)))
            return gs.Constant(unused_name(f"{tensor.name}/channels_last_{len(self.graph.nodes)}"), moved)
        if id(tensor) in self.made:
            return self.made[id(tensor)]
        if id(tensor) not in self.transposed:
            self.transposed[id(tensor)] = self._like(tensor, "last")
            self._transpose(tensor, self.transposed[id(tensor)], channels_last(axes))
        return self.transposed[id(tensor)]

    def outputs(self, tensor: gs.Variable) -> gs.Variable:
        """The tensor that a node with channels last makes in place of `tensor`, which is transposed from it."""
        result = self._like(tensor, "last")
        tensor.inputs.clear()
        self.made[id(tensor)] = result
        self._transpose(result, tensor, channels_first(len(tensor.shape) - 2))
        return result

    def convolution(self, node: gs.Node, format_name: str) -> gs.Node:
        """Replace `node` by a DeftConv."""
        x, y = node.inputs[0], node.outputs[0]
        image = [size if isinstance(size, int) else 0 for size in list(x.shape)[2:]]
        source = self.last(x, len(x.shape))
        missing = -x.shape[1] % ALIGNMENT
        conv = node
        if missing and node.op == "Conv" and node.attrs.get("group", 1) == 1:
            source, conv = self._filled(source, missing, node)
        result = self.outputs(y)
        made = packed_conv.deft_conv(conv, format_name, source, result, image=image if all(image) else None)
        self.graph.nodes.append(made)
        node.outputs.clear()
        return made

    def _filled(self, source: gs.Tensor, missing: int, node: gs.Node) -> tuple[gs.Variable, gs.Node]:
        """`source` with `missing` channels of zeros more, and a convolution that ignores these."""
        rank = len(source.shape)
        pads = np.zeros(2 * rank, np.int64)
        pads[-1] = missing
        filled = gs.Variable(unused_name(f"{node.name}/filled"), source.dtype)
        filled.shape = [*list(source.shape)[:-1], source.shape[-1] + missing]
        constant = gs.Constant(unused_name(f"{node.name}/fill"), pads)
        self.graph.nodes.append(gs.Node("Pad", unused_name(f"{node.name}/fill"), {}, [source, constant], [filled]))
        weight = node.inputs[1].values
        width = [(0, 0), (0, missing)] + [(0, 0)] * (weight.ndim - 2)
        inputs = [node.inputs[0], gs.Constant(unused_name(f"{node.name}/filled_weight"), np.pad(weight, width))]
        wider = gs.Node("Conv", node.name, dict(node.attrs), [*inputs, *node.inputs[2:]])
        return filled, wider

    def _like(self, tensor: gs.Tensor, what: str) -> gs.Variable:
        order = channels_last(len(tensor.shape) - 2)
        shape: list[Any] = [tensor.shape[axis] for axis in order]
        return gs.Variable(unused_name(f"{tensor.name}/channels_{what}"), tensor.dtype or np.dtype(np.float32), shape)

    def _transpose(self, source: gs.Tensor, result: gs.Tensor, order: list[int]) -> None:
        name = unused_name(f"{result.name}/transpose")
        self.graph.nodes.append(gs.Node("Transpose", name, {"perm": order}, [source], [result]))


def _move_unary(region: _Region, node: gs.Node) -> None:
    """Only the first input has channels; Clip's bounds are numbers."""
    if node.outputs[0].shape is not None and len(node.outputs) == 1:
        node.inputs = [region.last(node.inputs[0], len(node.inputs[0].shape)), *node.inputs[1:]]
        node.outputs = [region.outputs(node.outputs[0])]


def _move_binary(region: _Region, node: gs.Node) -> None:
    y = node.outputs[0]
    if y.shape is None or any(isinstance(t, gs.Constant) and len(t.shape) > len(y.shape) for t in node.inputs):
        return
    node.inputs = [region.last(t, len(y.shape)) for t in node.inputs]
    node.outputs = [region.outputs(y)]


def _move_concat(region: _Region, node: gs.Node) -> None:
    y = node.outputs[0]
    if y.shape is None or any(isinstance(t, gs.Constant) for t in node.inputs):
        return
    rank = len(y.shape)
    node.attrs["axis"] = channels_last(rank - 2).index(node.attrs["axis"] % rank)
    node.inputs = [region.last(t, rank) for t in node.inputs]
    node.outputs = [region.outputs(y)]


def _move_global_average(region: _Region, node: gs.Node) -> None:
    rank = len(node.inputs[0].shape)
    if node.outputs[0].shape is not None and len(node.outputs) == 1:
        _mean(region, node, list(range(1, rank - 1)))


def _move_mean(region: _Region, node: gs.Node) -> None:
    """A mean over the image that keeps the number of dimensions."""
    rank = len(node.inputs[0].shape)
    given = node.inputs[1].values.tolist() if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant) else None
    axes = node.attrs.get("axes", given)
    if axes is None or sorted(axis % rank for axis in axes) != list(range(2, rank)):
        return
    if node.attrs.get("keepdims", 1):
        if node.outputs[0].shape is not None:
            _mean(region, node, list(range(1, rank - 1)))
        return
    _mean(region, node, list(range(1, rank - 1)), keep=False)  # (batch, channels) either way


def _mean(region: _Region, node: gs.Node, axes: list[int], keep: bool = True) -> None:
    source = region.last(node.inputs[0], len(node.inputs[0].shape))
    node.op, node.attrs, node.inputs = "ReduceMean", {"keepdims": int(keep)}, [source]
    if region.graph.opset >= AXES_AS_INPUT:
        node.inputs.append(gs.Constant(unused_name(f"{node.name}/image_axes"), np.array(axes, np.int64)))
    else:
        node.attrs["axes"] = axes
    if keep:
        node.outputs = [region.outputs(node.outputs[0])]


_MOVES: dict[str, Callable[[_Region, gs.Node], None]] = {
    **dict.fromkeys(UNARY, _move_unary),
    **dict.fromkeys(BINARY, _move_binary),
    "Concat": _move_concat,
    "GlobalAveragePool": _move_global_average,
    "ReduceMean": _move_mean,
}
