"""Which rows and features of which projection the heads of an attention read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard
from deftonnx.rewrite.attention import rotary
from deftonnx.rewrite.attention.layout import Chain, Run, Shapes, backwards

Array = np.ndarray[Any, Any]


@dataclass
class Projection:
    """`y` = x · weight (+ bias), row by row."""

    x: gs.Tensor
    y: gs.Tensor
    weight: Array  # (K, F)
    bias: Array | None  # (F,)


@dataclass
class Heads:
    """(batch, heads, length, head size) read as rows of `source` (batch, length, …): head h, feature d is column
    `columns[h, d]` of its `projection`, or of `source` itself where there is none, all axes behind the length taken
    together; turned by `rotary`, if any."""

    source: gs.Tensor
    projection: Projection | None
    columns: Array  # (H, D)
    scale: float
    rotary: rotary.Rotary | None = None


def find(tensor: gs.Tensor, runs: list[Run], transposed: bool) -> Heads | str:
    """The heads in `tensor` (…, S, D), or (…, D, S) if `transposed`; `runs` are what it must hold for."""
    chain = backwards(tensor, scaling=True)
    turned = rotary.match(chain.start)
    behind = None
    if turned is not None and all(_is_turned(turned, chain, run, transposed) for run in runs):
        behind, chain = chain, backwards(turned.x, scaling=True)
    else:
        turned = None
    projection = projection_of(chain.start)
    starts = [Chain(chain.start, chain.start, [])]
    if projection is not None:  # whose rows may be those of a sequence, or be it themselves, as the windows of Swin
        starts = [backwards(projection.x, scaling=False), Chain(projection.x, projection.x, [])]
    scale = chain.scale * (1.0 if behind is None else behind.scale)
    refusals = []
    for before in starts:
        found = _columns_in(runs, chain, behind, projection, before, transposed)
        if not isinstance(found, str):
            return Heads(before.start, projection, found, scale, turned)
        refusals.append(found)
    return refusals[0]


def _columns_in(
    runs: list[Run], chain: Chain, behind: Chain | None, projection: Projection | None, before: Chain, transposed: bool
) -> Array | str:
    """The columns (H, D), the same in all runs: `chain`, and `behind` it what follows the rotary embedding, lead from
    the projection to the heads, `before` from the sequences to the projection."""
    found: Array | None = None
    for run in runs:
        positions = chain.positions(run.shapes)
        if positions is not None and behind is not None:
            later = behind.positions(run.shapes)
            positions = None if later is None else positions.reshape(-1)[later]
        columns = _columns(positions, chain.start, projection, before, run.shapes, transposed)
        if isinstance(columns, str):
            return columns
        if found is not None and not np.array_equal(found, columns):
            return "its heads read other features when the shape changes"
        found = columns
    assert found is not None
    return found


def _is_turned(turned: rotary.Rotary, behind: Chain, run: Run, transposed: bool) -> bool:
    """Whether row s, feature d of the heads that `behind` makes of `turned` are those there, of the same sample."""
    positions = behind.positions(run.shapes)
    if positions is None or positions.ndim not in (3, 4) or not turned.holds(run):
        return False
    positions = np.swapaxes(positions, -1, -2) if transposed else positions
    batch, heads, length, size = run.shapes[turned.x.name]
    if positions.shape[-2:] != (length, size) or positions.size % (batch * length * size):
        return False
    rows = positions.reshape(batch, -1, length, size)
    samples, rest = np.divmod(rows, heads * length * size)
    in_order = (samples == np.arange(batch).reshape(-1, 1, 1, 1)).all()
    return bool(in_order and (rest % (length * size) == np.arange(length * size).reshape(length, size)).all())


def _columns(
    positions: Array | None,
    start: gs.Tensor,
    projection: Projection | None,
    before: Chain,
    shapes: Shapes,
    transposed: bool,
) -> Array | str:
    """The columns (H, D) in one run, from the `positions` in `start` that the heads hold."""
    source = shapes.get(before.start.name)
    ranks = (3, 4) if projection is None else (3,)
    if positions is None or source is None or len(source) not in ranks or positions.ndim not in (3, 4):
        return "how its heads are laid out cannot be told"
    positions = np.swapaxes(positions, -1, -2) if transposed else positions
    batch, length = source[:2]
    features = int(np.prod(source[2:])) if projection is None else shapes[start.name][-1]
    S, D = positions.shape[-2:]
    if length != S or positions.size % (batch * S * D):
        return "its heads are not rows of one sequence"
    rows, columns = np.divmod(positions.reshape(batch, -1, S, D), features)  # (batch, H, S, D)
    if projection is not None:
        moved = before.positions(shapes)
        if moved is None or (moved.reshape(-1, moved.shape[-1]) % source[-1] != np.arange(source[-1])).any():
            return "how the input of its projection is laid out cannot be told"
        rows = (moved.reshape(-1, moved.shape[-1])[:, 0] // source[-1])[rows]
    if (rows != np.arange(batch * S).reshape(batch, 1, S, 1)).any() or (columns != columns[:1, :, :1]).any():
        return "its heads are not columns of one projection"
    result: Array = columns[0, :, 0]
    return result


def projection_of(y: gs.Tensor) -> Projection | None:
    """The product with a constant weight that makes `y`, if one does."""
    node = y.inputs[0] if len(y.inputs) == 1 else None
    if node is None or not is_standard(node):
        return None
    if node.op == "Gemm":
        return _of_gemm(node)
    bias = None
    if node.op == "Add":
        constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
        others = [t for t in node.inputs if not isinstance(t, gs.Constant)]
        if len(constants) != 1 or len(others[0].inputs) != 1 or not _is_vector(constants[0]):
            return None
        node, bias = others[0].inputs[0], constants[0].values.reshape(-1)
    if node.op != "MatMul" or not isinstance(node.inputs[1], gs.Constant) or len(node.inputs[1].shape) != 2:
        return None
    weight = node.inputs[1].values
    if bias is not None and len(bias) != weight.shape[1]:
        return None
    return None if isinstance(node.inputs[0], gs.Constant) else Projection(node.inputs[0], y, weight, bias)


def _of_gemm(node: gs.Node) -> Projection | None:
    attributes = node.attrs
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
    if not plain or not all(isinstance(t, gs.Constant) for t in node.inputs[1:]):
        return None
    weight = node.inputs[1].values.T if attributes.get("transB", 0) else node.inputs[1].values
    bias = node.inputs[2].values.reshape(-1) if len(node.inputs) > 2 else None
    if bias is not None and len(bias) != weight.shape[1]:
        return None
    return Projection(node.inputs[0], node.outputs[0], weight, bias)


def _is_vector(constant: gs.Constant) -> bool:
    """True for (F,), (1, F), …"""
    return len(constant.shape) > 0 and int(np.prod(constant.shape)) == constant.shape[-1]
