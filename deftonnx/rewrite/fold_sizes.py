"""Work out what a graph computes of the sizes of its tensors, where those do not depend on the batch.

Exporters write `x.view(b, 2, c // 2, h, w)`, `x.chunk(2, 1)` or a window of an image as chains of Shape, Gather,
arithmetic and Concat, also where only the size of the batch is free. Every entry of such a vector that depends on known
sizes alone is known. What has known entries only becomes a constant, and a Reshape's target one unknown entry, −1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.order import sort_nodes

Array = np.ndarray[Any, Any]
MOST = 4096
"""Entries of a tensor that is looked at: sizes are few, and so are the positions that windows are made of."""
EXACT = 1 << 53
"""The largest integer up to which float64 holds all: INT64_MAX, the end of a Slice, would become INT64_MIN."""
_UNKNOWN = np.nan


def fold_sizes(graph: gs.Graph) -> bool:
    """Replace what is known by constants, in place, where shapes are known; True if anything changed.

    The nodes that computed it are left to a clean-up. Shapes that are known by a new constant alone are not seen yet.
    """
    sort_nodes(graph)
    known: dict[int, Array] = {}  # by tensor: float64, NaN where it depends on an unknown size
    changed = False
    for node in graph.nodes:
        if not is_standard(node) or len(node.outputs) != 1:
            continue
        if (found := _evaluate(node, known)) is not None and found.size <= MOST:
            known[id(node.outputs[0])] = found
    for node in graph.nodes:
        if id(node.outputs[0] if node.outputs else None) in known:
            continue  # it has no reader when all others have been served
        for i, tensor in enumerate(node.inputs):
            if id(tensor) in known and (constant := _constant(node, i, known[id(tensor)])) is not None:
                node.inputs[i] = constant
                changed = True
    return changed


def _constant(node: gs.Node, i: int, values: Array) -> gs.Constant | None:
    """What can stand in for input `i` of `node`, of these values."""
    tensor = node.inputs[i]
    unknown = np.isnan(values)
    if unknown.any():
        target = node.op == "Reshape" and i == 1 and is_standard(node) and values.ndim == 1
        if not target or unknown.sum() > 1 or not (values[~unknown] > 0).all():
            return None
        values = np.where(unknown, -1.0, values)
    if tensor.dtype is None or (np.dtype(tensor.dtype).kind in "iu" and np.abs(values).max(initial=0) > EXACT):
        return None
    return gs.Constant(unused_name(f"{tensor.name}/known_{node.name}_{i}"), values.astype(tensor.dtype))


def _evaluate(node: gs.Node, known: dict[int, Array]) -> Array | None:
    """The output of `node`; None where it is not made of sizes, or cannot be told."""
    if node.op == "Shape":
        return _shape(node)
    function = _FUNCTIONS.get(node.op)
    if function is None or not any(id(t) in known for t in node.inputs):
        return None
    operands: list[Array | None] = []
    for tensor in node.inputs:
        if not tensor.name:
            operands.append(None)
        elif id(tensor) in known:
            operands.append(known[id(tensor)])
        elif isinstance(tensor, gs.Constant) and np.prod(tensor.shape) <= MOST and tensor.values.dtype.kind in "iufb":
            operands.append(np.asarray(tensor.values, np.float64))
        else:
            return None
    try:
        with np.errstate(all="ignore"):
            result = np.asarray(function(node, *operands), np.float64)
    except (ValueError, IndexError, TypeError):
        return None
    result = np.where(np.isinf(result), _UNKNOWN, result)
    kind = node.outputs[0].dtype
    if kind is None or np.dtype(kind).kind not in "iufb":
        return None
    return result.astype(kind).astype(np.float64) if np.dtype(kind).kind == "f" else result


def _shape(node: gs.Node) -> Array | None:
    shape = node.inputs[0].shape
    if shape is None:
        return None
    sizes = [float(size) if isinstance(size, int) and size >= 0 else _UNKNOWN for size in shape]
    return np.array(sizes[node.attrs.get("start", 0) : node.attrs.get("end", len(sizes))])


def _integers(values: Array | None) -> list[int]:
    """Positions, axes or sizes; raises ValueError where one is not known."""
    if values is None or np.isnan(values).any():
        raise ValueError("an operand depends on an unknown size")
    return [int(value) for value in values.reshape(-1)]


def _axes(node: gs.Node, operand: Array | None) -> list[int] | None:
    return list(node.attrs["axes"]) if "axes" in node.attrs else None if operand is None else _integers(operand)


def _gather(node: gs.Node, x: Array, index: Array) -> Array:
    positions = np.array(_integers(index), np.int64).reshape(index.shape)
    return np.asarray(np.take(x, positions, axis=node.attrs.get("axis", 0)))


def _slice(node: gs.Node, x: Array, *bounds: Array | None) -> Array:
    if "starts" in node.attrs:
        starts, ends, axes, steps = list(node.attrs["starts"]), list(node.attrs["ends"]), _axes(node, None), None
    else:
        starts, ends = _integers(bounds[0]), _integers(bounds[1])
        axes = _axes(node, bounds[2] if len(bounds) > 2 else None)
        steps = _integers(bounds[3]) if len(bounds) > 3 and bounds[3] is not None else None
    for n, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = 1 if steps is None else steps[n]
        end: int | None = ends[n]
        if step < 0 and ends[n] <= -x.shape[axis] - 1:
            end = None  # past the first entry
        index: list[slice] = [slice(None)] * x.ndim
        index[axis] = slice(starts[n], end, step)
        x = x[tuple(index)]
    return x


def _unsqueeze(node: gs.Node, x: Array, operand: Array | None = None) -> Array:
    return np.expand_dims(x, tuple(_axes(node, operand) or ()))


def _squeeze(node: gs.Node, x: Array, operand: Array | None = None) -> Array:
    axes = _axes(node, operand)
    return np.squeeze(x, None if axes is None else tuple(axes))


def _reshape(node: gs.Node, x: Array, target: Array) -> Array:
    sizes = _integers(target)
    if 0 in sizes and not node.attrs.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _cast(node: gs.Node, x: Array) -> Array:
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(node.attrs["to"])).kind
    if kind not in "iu":
        return np.where(np.isnan(x), _UNKNOWN, x != 0) if kind == "b" else x
    return np.trunc(x)


def _constant_of_shape(node: gs.Node, shape: Array) -> Array:
    value = node.attrs.get("value")
    return np.full(_integers(shape), 0.0 if value is None else float(np.asarray(value.values).reshape(-1)[0]))


def _divide(node: gs.Node, a: Array, b: Array) -> Array:
    kind = node.outputs[0].dtype
    return np.trunc(a / b) if kind is not None and np.dtype(kind).kind in "iu" else a / b


def _modulo(node: gs.Node, a: Array, b: Array) -> Array:
    return np.asarray(np.fmod(a, b) if node.attrs.get("fmod", 0) else np.mod(a, b))


def _compare(function: Callable[[Array, Array], Array]) -> Callable[[gs.Node, Array, Array], Array]:
    return lambda node, a, b: np.where(np.isnan(a) | np.isnan(b), _UNKNOWN, function(a, b))


def _reduce_prod(node: gs.Node, x: Array, operand: Array | None = None) -> Array:
    axes = _axes(node, operand) or None
    if axes is None and node.attrs.get("noop_with_empty_axes", 0):
        return x
    return np.asarray(np.prod(x, None if axes is None else tuple(axes), keepdims=bool(node.attrs.get("keepdims", 1))))


def _not(node: gs.Node, x: Array) -> Array:
    return 1 - x


def _where(node: gs.Node, condition: Array, a: Array, b: Array) -> Array:
    return np.where(np.isnan(condition), _UNKNOWN, np.where(condition != 0, a, b))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda node, a, b: a + b,
    "Cast": _cast,
    "Ceil": lambda node, x: np.ceil(x),
    "Concat": lambda node, *parts: np.concatenate(parts, axis=node.attrs["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Equal": _compare(np.equal),
    "Floor": lambda node, x: np.floor(x),
    "Gather": _gather,
    "Greater": _compare(np.greater),
    "Identity": lambda node, x: x,
    "Less": _compare(np.less),
    "Max": lambda node, *parts: np.max(np.broadcast_arrays(*parts), axis=0),
    "Min": lambda node, *parts: np.min(np.broadcast_arrays(*parts), axis=0),
    "Mod": _modulo,
    "Mul": lambda node, a, b: a * b,
    "Neg": lambda node, x: -x,
    "Not": _not,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": lambda node, a, b: a - b,
    "Transpose": lambda node, x: x.transpose(node.attrs.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""What exporters compute with sizes. An unknown entry makes unknown what is computed of it."""
