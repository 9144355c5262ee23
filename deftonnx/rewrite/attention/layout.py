"""Where the numbers of a tensor come from: a chain of layout operators, evaluated on positions instead of values.

Exporters split and join heads in many ways (Reshape and Transpose in either order, Split, Gather, Slice, three or four
dimensions). None of them matters once the chain has been run on an array of positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard

Array = np.ndarray[Any, Any]
Shapes = dict[str, tuple[int, ...]]
"""Shapes of tensors by name, as observed in one run of the model."""


class Run(Protocol):
    """What was seen in one run of the model: the shapes of all float32 tensors, the values of some tensors."""

    shapes: Shapes
    values: dict[str, Array]


RESHAPING = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
"""Operators that leave the order of the numbers: the observed shape of the output says everything."""
_LONGEST = 24


def value_in(run: Run, tensor: gs.Tensor) -> Array | None:
    """The value of `tensor` in a run, if it is known."""
    if isinstance(tensor, gs.Constant):
        return np.asarray(tensor.values)
    return run.values.get(tensor.name)


@dataclass
class Chain:
    """Layout nodes from `start` to `end`, in order, and the product of the constants that it multiplies by."""

    start: gs.Tensor
    end: gs.Tensor
    nodes: list[gs.Node]
    scale: float = 1.0

    def positions(self, shapes: Shapes) -> Array | None:
        """For each number of `end` its position in the flattened `start`; None where that cannot be told."""
        if any(t.name not in shapes for node in self.nodes for t in node.outputs[:1]) or self.start.name not in shapes:
            return None
        shape = shapes[self.start.name]
        value = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        followed = self.start
        for i, node in enumerate(self.nodes):
            result = self.nodes[i + 1].inputs if i + 1 < len(self.nodes) else [self.end]
            followed = next(t for t in node.outputs if any(t is other for other in result))
            moved = _move(node, followed, value, shapes)
            if moved is None or moved.shape != shapes[followed.name]:
                return None
            value = moved
        return value


def backwards(tensor: gs.Tensor, scaling: bool) -> Chain:
    """The longest chain that ends in `tensor`; `scaling` lets it pass products with a constant number."""
    nodes: list[gs.Node] = []
    scale, at = 1.0, tensor
    while len(nodes) < _LONGEST and at.inputs:
        node = at.inputs[0]
        factor = _factor(node) if scaling else None
        if factor is not None:
            scale *= factor[1]
            nodes.insert(0, node)
            at = factor[0]
        elif _is_layout(node):
            nodes.insert(0, node)
            at = node.inputs[0]
        else:
            break
    return Chain(at, tensor, nodes, scale)


def forwards(tensor: gs.Tensor) -> list[Chain]:
    """The chains of layout nodes that start at `tensor`, each read by the next node only, shortest first. The shapes of
    what lies between may be read too where they only serve nodes of the chain."""
    chains, nodes, at = [], list[gs.Node](), tensor
    measured: list[gs.Node] = []
    while len(nodes) < _LONGEST:
        readers = [node for node in at.outputs if node.op != "Shape"]
        measured += [node for node in at.outputs if node.op == "Shape"]
        if len(readers) != 1 or not _is_layout(readers[0]):
            break
        node = readers[0]
        if node.inputs[0] is not at or len(node.outputs) != 1:
            break
        nodes, at = [*nodes, node], node.outputs[0]
        if all(_only_serves(other, nodes) for other in measured):
            chains.append(Chain(tensor, at, nodes))
    return chains


def _only_serves(node: gs.Node, nodes: list[gs.Node]) -> bool:
    """True where all that is made of `node` goes into `nodes`."""
    pending = [node]
    for _ in range(_LONGEST):
        if not pending:
            return True
        users = [user for t in pending.pop().outputs for user in t.outputs]
        if not users:
            return False
        pending += [user for user in users if all(user is not known for known in nodes)]
    return False


def scalar(tensor: gs.Tensor) -> float | None:
    """The number that a constant of one element is."""
    if not isinstance(tensor, gs.Constant) or int(np.prod(tensor.shape)) != 1 or len(tensor.shape) > 1:
        return None
    return float(tensor.values.reshape(()))


def _factor(node: gs.Node) -> tuple[gs.Tensor, float] | None:
    """What `node` multiplies by a constant number, and the number."""
    if not is_standard(node) or node.op not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    number = scalar(second)
    if number is not None and not isinstance(first, gs.Constant):
        return (first, number if node.op == "Mul" else 1 / number) if number else None
    number = scalar(first)
    return (second, number) if number is not None and node.op == "Mul" else None


def _is_layout(node: gs.Node) -> bool:
    if not is_standard(node) or isinstance(node.inputs[0], gs.Constant):
        return False
    if node.op in RESHAPING or node.op in ("Expand", "Transpose", "Split"):
        return True
    return node.op in ("Gather", "GatherND", "Slice") and all(
        isinstance(t, gs.Constant) for t in node.inputs[1:] if t.name
    )


def _move(node: gs.Node, result: gs.Tensor, value: Array, shapes: Shapes) -> Array | None:
    """What `node` makes of an array of positions."""
    if node.op in RESHAPING:
        return value.reshape(shapes[result.name]) if value.size == np.prod(shapes[result.name]) else None
    if node.op == "Expand":
        return np.broadcast_to(value, shapes[result.name])
    if node.op == "Transpose":
        return value.transpose(node.attrs.get("perm"))
    if node.op == "Gather":
        return value.take(node.inputs[1].values, axis=node.attrs.get("axis", 0))
    if node.op == "GatherND":
        indices = node.inputs[1].values
        return None if node.attrs.get("batch_dims", 0) else value[tuple(np.moveaxis(indices, -1, 0))]
    if node.op == "Split":
        return _split(node, result, value, shapes)
    return _slice(node, value) if node.op == "Slice" else value  # a product with a number


def _split(node: gs.Node, result: gs.Tensor, value: Array, shapes: Shapes) -> Array | None:
    axis = node.attrs.get("axis", 0)
    length = shapes[result.name][axis]
    sizes = node.inputs[1].values.tolist() if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant) else None
    sizes = node.attrs.get("split", sizes) or [length] * len(node.outputs)
    if sum(sizes) != value.shape[axis]:
        return None
    start = sum(sizes[: next(i for i, t in enumerate(node.outputs) if t is result)])
    return value.take(range(start, start + length), axis=axis)


def _slice(node: gs.Node, value: Array) -> Array | None:
    given = [t.values.reshape(-1).tolist() if t.name else None for t in node.inputs[1:]]
    starts = given[0] if given else node.attrs.get("starts")
    ends = given[1] if len(given) > 1 else node.attrs.get("ends")
    if starts is None or ends is None:
        return None
    axes = (given[2] if len(given) > 2 else node.attrs.get("axes")) or list(range(len(starts)))
    steps = (given[3] if len(given) > 3 else None) or [1] * len(starts)
    if any(step < 1 for step in steps):
        return None
    index = [slice(None)] * value.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return value[tuple(index)]
