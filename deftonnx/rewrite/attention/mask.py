"""What is added to the scores of an attention, in the shape that MultiHeadAttention takes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import unused_name
from deftonnx.rewrite.attention.layout import Shapes

_AXES = 4


def as_bias(
    graph: gs.Graph,
    mask: gs.Tensor,
    scores: tuple[gs.Tensor, gs.Tensor],
    source: gs.Tensor,
    heads: int,
    runs: list[Shapes],
    known: dict[int, gs.Tensor],
) -> gs.Tensor | str:
    """`mask` as (batch or 1, heads or 1, S, T) for `scores` a · b, or why not; made once a mask.

    `source` is (batch, S, features).
    """
    for shapes in runs:
        left, right = shapes[scores[0].name], shapes[scores[1].name]
        shape = tuple(mask.shape) if isinstance(mask, gs.Constant) else shapes.get(mask.name)
        if shape is None or len(left) != _AXES or len(shape) > _AXES:
            return "its mask does not have the dimensions of its scores"
        full = (1,) * (_AXES - len(shape)) + shape
        S, T = left[-2], right[-1]
        if full[0] not in (1, left[0]) or full[1] not in (1, heads) or full[2] not in (1, S) or full[3] != T:
            return "its mask does not have the shape of its scores"
    if id(mask) in known:
        return known[id(mask)]
    rank = len(mask.shape) if isinstance(mask, gs.Constant) else len(runs[0][mask.name])
    rows = {(mask.shape if isinstance(mask, gs.Constant) else shapes[mask.name])[-2] for shapes in runs}
    if rank == _AXES and rows != {1}:
        known[id(mask)] = mask
        return mask
    result = gs.Variable(unused_name(f"{mask.name}/bias"), np.float32, [None, full[1], None, None])
    graph.nodes.append(
        gs.Node("Expand", unused_name(f"{mask.name}/bias"), {}, [mask, _shape_of_scores(graph, mask, source)], [result])
    )
    known[id(mask)] = result
    return result


def _shape_of_scores(graph: gs.Graph, mask: gs.Tensor, source: gs.Tensor) -> gs.Tensor:
    """(1, 1, S, 1) as a tensor, for `source` (batch, S, features)."""
    name = unused_name(f"{mask.name}/rows")
    parts = [gs.Variable(f"{name}/{part}", np.int64) for part in ("shape", "length", "all")]
    one = gs.Constant(f"{name}/one", np.ones(1, np.int64))
    pair = gs.Constant(f"{name}/ones", np.ones(2, np.int64))
    axis = gs.Constant(f"{name}/axis", np.array([1], np.int64))
    graph.nodes.append(gs.Node("Shape", parts[0].name, {}, [source], [parts[0]]))
    graph.nodes.append(gs.Node("Gather", parts[1].name, {"axis": 0}, [parts[0], axis], [parts[1]]))
    graph.nodes.append(gs.Node("Concat", parts[2].name, {"axis": 0}, [pair, parts[1], one], [parts[2]]))
    return parts[2]
