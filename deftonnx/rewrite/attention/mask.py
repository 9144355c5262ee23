"""What is added to the scores of an attention, in the shape that MultiHeadAttention takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.attention.layout import Run, Shapes, value_in
from deftonnx.rewrite.layer_norm import number_of

Array = np.ndarray[Any, Any]
_AXES = 4
_MOST_NODES = 200
_HIDDEN = -1e4
"""Scores are hidden by what is not larger."""
_NO_LENGTH = 2**31 - 1
"""What is not smaller is no length: it stands for the end of an axis."""


def from_sizes(tensor: gs.Tensor, most: int = _MOST_NODES) -> bool:
    """True where `tensor` is constant, or made of constants and shapes alone, by at most so many nodes."""
    return isinstance(tensor, gs.Constant) or _constants_behind(tensor, most) is not None


def _constants_behind(tensor: gs.Tensor, most: int = _MOST_NODES) -> list[gs.Constant] | None:
    """The constants of which, and of shapes, at most so many nodes make `tensor`; None where there is more to it."""
    pending, seen, found = list(tensor.inputs), set[int](), list[gs.Constant]()
    while pending:
        node = pending.pop()
        if id(node) in seen or node.op == "Shape":
            continue
        seen.add(id(node))
        if len(seen) > most or any(t.name and not t.inputs and not isinstance(t, gs.Constant) for t in node.inputs):
            return None
        found += [t for t in node.inputs if isinstance(t, gs.Constant)]
        pending += [maker for t in node.inputs for maker in t.inputs]
    return found if tensor.inputs else None


def watched(mask: gs.Tensor) -> list[gs.Tensor]:
    """The tensors whose values `without_causal` wants to see, if they vary."""
    return [mask] if from_sizes(mask) else _conditions(mask)[1]


def without_causal(
    graph: gs.Graph, mask: gs.Tensor, runs: list[Run], known: dict[Any, gs.Tensor]
) -> tuple[gs.Tensor | None, bool]:
    """What is left of `mask` where it hides all keys behind a row, and whether it does, by what was seen in `runs`.

    That it does has to follow from sizes alone. Rows that see no key at all may get other weights.
    """
    if from_sizes(mask):
        if not _hides_later(mask, runs):
            return mask, False
        return (None if _shows_the_rest(mask, runs) else mask), True
    choice, conditions = _conditions(mask)
    causal = [t for t in conditions if from_sizes(t) and _hides_later(t, runs)]
    if choice is None or not causal:
        return mask, False
    rest = [t for t in conditions if not (from_sizes(t) and _shows_the_rest(t, runs))]
    if not rest or not all(_has_all_keys(rest, causal[0], run) for run in runs):
        return mask, True
    key = *sorted(map(id, rest)), *map(number_of, choice.inputs[1:])
    if key not in known:
        known[key] = _chosen(graph, choice, rest, f"{mask.name}/not_causal")
    return known[key], True


def _conditions(mask: gs.Tensor) -> tuple[gs.Node | None, list[gs.Tensor]]:
    """The Where that makes `mask` of a number, and one that hides, and the conditions that must all hold for it not to
    hide."""
    mask = _unexpanded(mask)
    choice = mask.inputs[0] if mask.inputs else None
    if choice is None or choice.op != "Where" or not is_standard(choice):
        return None, []
    numbers = [number_of(t) for t in choice.inputs[1:]]
    if numbers[0] != 0 or numbers[1] is None or numbers[1] > _HIDDEN:
        return None, []
    pending, found = [choice.inputs[0]], list[gs.Tensor]()
    while pending:
        condition = _unexpanded(pending.pop())
        if not from_sizes(condition) and condition.inputs and condition.inputs[0].op == "And":
            pending += condition.inputs[0].inputs
        else:
            found.append(condition)
    return choice, found


def _has_all_keys(conditions: list[gs.Tensor], causal: gs.Tensor, run: Run) -> bool:
    """Whether the conditions have four axes each, and one for as many keys as `causal` together."""
    values, whole = [value_in(run, t) for t in conditions], value_in(run, causal)
    shapes = [value.shape for value in values if value is not None and value.ndim == _AXES]
    return whole is not None and len(shapes) == len(values) and max(s[-1] for s in shapes) == whole.shape[-1]


def _chosen(graph: gs.Graph, choice: gs.Node, conditions: list[gs.Tensor], name: str) -> gs.Tensor:
    """What `choice` chooses if only these conditions count."""
    condition = conditions[0]
    for other in conditions[1:]:
        both = gs.Variable(unused_name(f"{name}/{other.name}"), np.bool_)
        graph.nodes.append(gs.Node("And", both.name, {}, [condition, other], [both]))
        condition = both
    result = gs.Variable(unused_name(name), np.float32, [None] * _AXES)
    graph.nodes.append(gs.Node("Where", result.name, {}, [condition, *choice.inputs[1:]], [result]))
    return result


def _hides_later(mask: gs.Tensor, runs: list[Run]) -> bool:
    """Whether `mask`, a bias or a condition, hides all keys behind a row, of which there are some."""
    values = [value_in(run, mask) for run in runs]
    return all(_later(value, later=True) for value in values) and any(v is not None and v.shape[-1] > 1 for v in values)


def _shows_the_rest(mask: gs.Tensor, runs: list[Run]) -> bool:
    """Whether `mask`, a bias or a condition, leaves all others as they are, in longer sequences too."""
    return all(_later(value_in(run, mask), later=False) for run in runs) and not _may_reach(mask, runs)


def _may_reach(mask: gs.Tensor, runs: list[Run]) -> bool:
    """Whether a sequence longer than those in `runs` may reach a number in `mask`, such as the width of a window."""
    longest = max(value.shape[-1] for run in runs if (value := value_in(run, mask)) is not None)
    return any(_is_beyond(constant.values, longest) for constant in _constants_behind(mask) or [])


def _is_beyond(value: Array, length: int) -> bool:
    """Whether `value` is a length from that one on, or a table of masks that differ behind that length."""
    if value.ndim > 1 and value.shape[-1] == value.shape[-2] > 1:
        part = value[..., np.tri(value.shape[-1], dtype=bool)]
        return bool((part != part.flat[0]).any())
    if value.dtype.kind not in "iuf":
        return False
    most = -_HIDDEN if value.dtype.kind == "f" else _NO_LENGTH
    size = np.abs(value.astype(np.float64))
    return bool(((size >= length) & (size < most)).any())


def _later(value: Array | None, later: bool) -> bool:
    """Whether scores with keys behind their row are all hidden, or the other ones all left."""
    if value is None:
        return False
    if value.dtype == bool and value.all():
        return not later
    if value.ndim < 2 or value.shape[-1] != value.shape[-2]:
        return False
    part = value[..., np.tri(value.shape[-1], dtype=bool) != later]
    if value.dtype == bool:
        return bool((part != later).all())
    return bool((part <= _HIDDEN).all()) if later else not part.any()


def _unexpanded(tensor: gs.Tensor) -> gs.Tensor:
    while tensor.inputs and tensor.inputs[0].op in ("Expand", "Identity"):
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def as_bias(
    graph: gs.Graph,
    mask: gs.Tensor,
    scores: tuple[gs.Tensor, gs.Tensor],
    source: gs.Tensor,
    heads: int,
    runs: list[Shapes],
    known: dict[Any, gs.Tensor],
    all_rows: bool = True,
) -> gs.Tensor | str:
    """`mask` as (batch or 1, heads or 1, S, T) for `scores` a · b, or why not; made once a mask.

    `source` is (batch, S, features). Without `all_rows` S may be 1.
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
    if rank == _AXES and (rows != {1} or not all_rows):
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
