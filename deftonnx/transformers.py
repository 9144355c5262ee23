"""Fused operators for transformers: run the model for the shapes that recognition needs, rewrite, check the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from deftonnx import evaluation
from deftonnx.calibration.readers import Feed
from deftonnx.errors import DeftError
from deftonnx.layers import Refusal
from deftonnx.layers.linear import unused_name
from deftonnx.model import Model
from deftonnx.precision import difference
from deftonnx.rewrite.attention.fuse import fuse_attention, watched
from deftonnx.rewrite.attention.mask import from_sizes
from deftonnx.rewrite.attention.masks_together import add_masks_together
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.layer_norm import fuse_layer_norms
from deftonnx.rewrite.normalise import import_model, infer_shapes
from deftonnx.rewrite.regions.assign import is_float
from deftonnx.shapes import Observed, observe

SAMPLES = 3
TOLERANCE = 1e-3
_LONGEST = 32


def fuse_transformers(
    graph: gs.Graph, origin: onnx.ModelProto, feeds: list[Feed], portable: bool = False
) -> list[Refusal]:
    """Fuse layer normalisation and attention in place; why what looks like attention was left.

    The first of `feeds` says at which sizes the model runs. The result must equal the model to rounding there.
    `portable` forbids ai.deftonnx nodes.
    """
    _fuse_norms(graph, origin, feeds)
    softmaxes = [node for node in graph.nodes if node.op == "Softmax"]
    if not softmaxes:
        return []
    if not feeds:
        return [Refusal(n.name, n.op, "the model could not be run to see its shapes") for n in softmaxes]
    add_masks_together(graph)
    before = finish(graph, origin, {})
    infer_shapes(graph)
    numbers = {t.name: t for t in graph.tensors().values() if isinstance(t, gs.Variable) and _may_be_number(t)}
    names = [*numbers, *(name for name in watched(graph) if name not in numbers)]
    sizes = _free_sizes(graph, feeds[0])
    shorter = {name: size - 1 if size > 2 else size for name, size in sizes.items()}
    other = {name: size - 1 if size > 2 else size + 1 for name, size in sizes.items()}
    tried = [sizes] if other == sizes else [sizes, other]
    apart = {name: size - i if size > i + 1 else size + i for i, (name, size) in enumerate(sizes.items())}
    seen = _observed(graph, origin, [_cut(graph, feeds[0], size) for size in tried], names)
    if len(seen) < 2 and shorter not in (sizes, other):  # a model may run with one sample only
        seen += _observed(graph, origin, [_cut(graph, feeds[0], shorter)], names)
    if len(set(sizes.values())) < len(sizes):  # lengths that only happen to be equal
        seen += _observed(graph, origin, [_cut(graph, feeds[0], apart)], names)
    infer_shapes(graph)
    if not seen or (len(seen) < 2 and shorter != sizes):
        return [Refusal(n.name, n.op, "the model runs at one size only") for n in softmaxes]
    runs = [run for _, run in seen]
    _fold_numbers(numbers, runs)
    fused, refusals = fuse_attention(graph, [*runs], portable)
    worst = _worst(finish(graph, origin, {}), seen) if fused else 0.0
    infer_shapes(graph)
    if worst <= TOLERANCE:
        return refusals

    def difference_of(names: list[str]) -> float:
        """That of the model with these fused, which `graph` then is."""
        _restore(graph, before)
        known = graph.tensors()
        _fold_numbers({name: t for name in numbers if isinstance(t := known.get(name), gs.Variable)}, runs)
        fuse_attention(graph, [*runs], portable, names)
        result = _worst(finish(graph, origin, {}), seen)
        infer_shapes(graph)
        return result

    equal, differing = _equal_ones(fused, difference_of)
    difference_of(equal)
    left = [Refusal(n, "Softmax", f"fused, an output would differ by {d:.2g}") for n, d in differing.items()]
    return refusals + left


def _equal_ones(names: list[str], difference_of: Callable[[list[str]], float]) -> tuple[list[str], dict[str, float]]:
    """Those of `names` with all of which the model stays the same, and the differences that the others make."""
    equal: list[str] = []
    differing: dict[str, float] = {}
    parts = [names[len(names) // 2 :], names[: len(names) // 2]]
    while parts:
        part = parts.pop()
        if not part:
            continue
        if (worst := difference_of(equal + part)) <= TOLERANCE:
            equal += part
        elif len(part) == 1:
            differing[part[0]] = worst
        else:
            parts += [part[len(part) // 2 :], part[: len(part) // 2]]
    return equal, differing


def _worst(model: Model, seen: list[tuple[Feed, Observed]]) -> float:
    """The largest ‖Δ‖/‖y‖ of an output of `model` from what was seen."""
    try:
        session = evaluation.session(model, runs_often=False)
    except DeftError:
        return float("inf")
    outputs = {output.name for output in model.shell.graph.output}
    return max(
        difference({name: y for name, y in run.values.items() if name in outputs}, session, [probe])
        for probe, run in seen
    )


def _fuse_norms(graph: gs.Graph, origin: onnx.ModelProto, feeds: list[Feed]) -> None:
    """Fuse layer normalisation, unless the model then computes something else on the first of `feeds`."""
    before = finish(graph, origin, {})
    infer_shapes(graph)
    if not fuse_layer_norms(graph) or not feeds:
        return
    probe = _cut(graph, feeds[0], _free_sizes(graph, feeds[0]))
    expected = evaluation.run(evaluation.session(before, runs_often=False), [probe])
    worst = difference(expected, finish(graph, origin, {}), [probe])
    infer_shapes(graph)
    if worst > TOLERANCE:
        _restore(graph, before)


def _restore(graph: gs.Graph, model: Model) -> None:
    restored = import_model(model)
    graph.nodes, graph.inputs, graph.outputs = restored.nodes, restored.inputs, restored.outputs
    infer_shapes(graph)


def _free_sizes(graph: gs.Graph, feed: Feed) -> dict[Any, int]:
    """The size of every free dimension in `feed`, of which at most SAMPLES samples count."""
    sizes: dict[Any, int] = {}
    for tensor in graph.inputs:
        for axis, length in enumerate(feed[tensor.name].shape):
            if (name := _free(tensor, axis)) is not None:
                sizes.setdefault(name, min(length, SAMPLES) if axis == 0 else length)
    return sizes


def _observed(
    graph: gs.Graph, origin: onnx.ModelProto, probes: list[Feed], names: list[str]
) -> list[tuple[Feed, Observed]]:
    """Those of `probes` with which the model runs, and what it does then, with the values of those `names`."""
    runs = observe(graph, origin, probes, names)
    return [(probe, run) for probe, run in zip(probes, runs, strict=True) if run is not None]


def _free(tensor: gs.Tensor, axis: int) -> Any:
    """What a dimension that may vary is called: equal ones have one name."""
    dimension = tensor.shape[axis] if tensor.shape is not None else None
    if isinstance(dimension, int) and dimension > 0:
        return None
    if isinstance(dimension, str) and dimension:
        return dimension
    return 0 if axis == 0 else (tensor.name, axis)


def _cut(graph: gs.Graph, feed: Feed, sizes: dict[Any, int]) -> Feed:
    result = {}
    for tensor in graph.inputs:
        value = feed[tensor.name]
        for axis in range(value.ndim):
            if (name := _free(tensor, axis)) is not None:
                value = value.take(np.arange(sizes[name]) % value.shape[axis], axis=axis)
        result[tensor.name] = value
    return result


def _fold_numbers(numbers: dict[str, gs.Variable], seen: list[Observed]) -> None:
    """Make constants of the single numbers that exporters work out from dimensions, such as 1 / √(head size)."""
    for name, tensor in numbers.items():
        if any(int(np.prod(run.shapes.get(name, (0, 0)))) != 1 for run in seen):
            continue
        if all(np.array_equal(run.values[name], seen[0].values[name]) for run in seen):
            value = seen[0].values[name].reshape(seen[0].shapes[name])
            constant = gs.Constant(unused_name(name), np.asarray(value, np.float32))
            for user in list(tensor.outputs):
                user.inputs = [constant if t is tensor else t for t in user.inputs]


def _may_be_number(tensor: gs.Variable) -> bool:
    """True for what follows from shapes and constants and multiplies or divides something else."""
    return (
        is_float(tensor) and any(user.op in ("Mul", "Div") for user in tensor.outputs) and from_sizes(tensor, _LONGEST)
    )
