"""Eliminates layer by layer in topological order, each on the activations of the already reduced model.

The graph keeps its shape here: weights of eliminated features become zero, and `LinearLayer.kept` records the choice.
Removing the zeros for good is the rewrite passes' work, and this masked graph is what they must equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.calibration.activations import ActivationStream, Feed
from deftonnx.calibration.spool import Spool
from deftonnx.calibration.statistics import Moments
from deftonnx.elimination import correlation, magnitude, obs, rectified, refit
from deftonnx.elimination.groups import Granularity
from deftonnx.elimination.problem import Member
from deftonnx.elimination.readout import metric_factor
from deftonnx.elimination.rectified import Rows
from deftonnx.layers import LinearLayer

Array = np.ndarray[Any, Any]
CRITERIA: dict[str, Any] = {"obs": obs, "correlation": correlation, "magnitude": magnitude}
ROWS_PER_FEATURE = 32
MIN_ROWS = 32768
"""Rows of X sampled for a layer's statistics: at least MIN_ROWS, and ROWS_PER_FEATURE for each of its K features."""


@dataclass
class Choice:
    """How one layer is to be reduced, and afterwards what came of it."""

    layer: LinearLayer
    original: LinearLayer
    granularity: Granularity
    density: float
    alpha: float | None
    criterion: str
    refit: str
    readers: list[tuple[LinearLayer, Array]] = field(default_factory=list)
    """The original's layers that read this one's outputs (`rewrite.absorb.readers`)."""
    units: list[Array] | None = None
    """Kept units of every group, where a plan gives them; filled in otherwise."""
    error: float | None = None
    """Mean squared error of the outputs after the refit over the variance of Y*, on the calibration rows. Where only a
    rectifier reads them, errors it would not pass on do not count."""

    @property
    def needs_data(self) -> bool:
        """True where the criterion or the refit reads activations."""
        decides = self.units is None and CRITERIA[self.criterion].needs_data
        return bool(decides or self.refit in refit.NEEDS_DATA)


def siblings(choices: list[Choice]) -> list[list[Choice]]:
    """Choices that must agree, in graph order: layers that read one tensor share one Gather (ladder step 3)."""
    together: dict[Any, list[Choice]] = {}
    for choice in choices:
        layer = choice.layer
        units = ("channel",) if choice.granularity.name == "channel" else layer.geometry
        key = (
            id(layer.x),
            layer.input_axis,
            layer.groups,
            layer.channels,
            choice.granularity,
            units,
            choice.density,
        )
        together.setdefault(key, []).append(choice)
    return list(together.values())


def eliminate(
    graph: gs.Graph,
    original: gs.Graph,
    groups: list[list[Choice]],
    batches: list[Feed] | None,
    seed: int,
    report: Callable[[Choice], None] = lambda choice: None,
) -> None:
    """Choose and refit every group of siblings; `graph` is masked in place, `original` stays as it was."""
    if batches is None or not any(c.needs_data for group in groups for c in group):
        for group in groups:
            _select(group, [_members(choice, None) for choice in group])
            for choice in group:
                _refit(choice, None, None)
                report(choice)
        return
    spool = Spool()
    try:
        reference = ActivationStream.start(original, batches, spool)
        reduced = reference
        for serial, group in enumerate(groups):
            reference.advance(_position(original, [c.original for c in group]))
            if reduced is not reference:
                reduced.advance(_position(graph, [c.layer for c in group]))
            rows = [CalibrationRows(choice, reference, reduced, seed + serial) for choice in group]
            _select(group, [_members(choice, r) for choice, r in zip(group, rows, strict=True)])
            for choice, r in zip(group, rows, strict=True):
                _refit(choice, r, spool)
                report(choice)
            if reduced is reference:
                reduced = reference.fork(graph)
    finally:
        spool.close()


def _position(graph: gs.Graph, layers: list[LinearLayer]) -> int:
    return min(next(i for i, n in enumerate(graph.nodes) if n is layer.node) for layer in layers)


class CalibrationRows:
    """Sampled rows of one layer: X of the reduced model and Y* = X*·W₀ + b₀ of the original."""

    def __init__(self, choice: Choice, reference: ActivationStream, reduced: ActivationStream, seed: int) -> None:
        self.choice, self.seed = choice, seed
        self.reference, self.reduced = reference, reduced
        batches = len(next(iter(reference.live.values())))
        self.limit = -(-max(MIN_ROWS, ROWS_PER_FEATURE * choice.layer.K) // batches)
        self.moments = [Moments() for _ in range(choice.layer.groups)]
        for X, Y in self.stream():
            for g, moments in enumerate(self.moments):
                moments.add(X[:, g], Y[:, g])

    def stream(self) -> Iterator[tuple[Array, Array]]:
        """Batches of X (rows, groups, K) and Y* (rows, groups, outputs), float32; the same ones every time."""
        layer, original = self.choice.layer, self.choice.original
        weight = original.weight().astype(np.float32)
        bias = original.row_bias(weight, original.bias()).astype(np.float32)
        for serial, (x, x_reduced) in enumerate(_pairs(layer.x.name, self.reference, self.reduced)):
            X = original.rows(x, self.limit, np.random.default_rng([self.seed, serial]))
            Y = np.stack([X[:, g] @ weight[g] + bias[g] for g in range(layer.groups)], axis=1)
            if x_reduced is not x:
                X = layer.rows(x_reduced, self.limit, np.random.default_rng([self.seed, serial]))
            yield X, Y

    def cached(self, g: int, kept: Array, spool: Spool) -> Rows:
        """The kept features and outputs of weight group `g`, spooled for several passes."""
        stored = [(spool.store(X[:, g, kept]), spool.store(Y[:, g])) for X, Y in self.stream() if len(X)]
        return lambda: ((X.load(), Y.load()) for X, Y in stored)


def _members(choice: Choice, rows: CalibrationRows | None) -> list[Member]:
    units = choice.granularity.groups(choice.layer.taps, choice.layer.channels)
    weights = choice.original.weight()
    if rows is None:
        return [Member(w, units) for w in weights]
    readouts = metric_factor(choice.original, choice.readers)
    return [
        Member(w, units, moments, readouts[g] if readouts else None)
        for g, (w, moments) in enumerate(zip(weights, rows.moments, strict=True))
    ]


def _pairs(name: str, reference: ActivationStream, reduced: ActivationStream) -> Iterator[tuple[Array, Array]]:
    if reduced is reference:
        yield from ((x, x) for x in reference.batches(name))
    else:
        yield from zip(reference.batches(name), reduced.batches(name), strict=True)


def _select(group: list[Choice], members: list[list[Member]]) -> None:
    """Pick the kept units of a sibling group; `members` are its weight matrices, [layer][weight group]."""
    first = group[0]
    if first.units is not None:
        return
    criterion = CRITERIA[first.criterion]
    together = [list(column) for column in zip(*members, strict=True)]  # [weight group][layer]
    if first.layer.shares_choice:
        together = [[m for column in together for m in column]]
    if first.alpha is not None:
        units = [correlation.keep_at(m, first.alpha) for m in together]
        most = max(len(u) for u in units)
        units = [correlation.keep(m, most) if len(u) != most else u for m, u in zip(together, units, strict=True)]
    else:
        units = [criterion.keep(m, kept_count(first.density, len(m[0].units))) for m in together]
    least = min(len(u) for u in units)
    units = [u[:least] for u in units]  # groups of one layer keep equally many
    for choice in group:
        choice.units = units * (choice.layer.groups // len(units))


def kept_count(density: float, units: int) -> int:
    """Units kept of `units` at this density: the nearest number, down at a tie, at least one."""
    return max(1, int(np.ceil(density * units - 0.5)))


def _refit(choice: Choice, rows: CalibrationRows | None, spool: Spool | None) -> None:
    """Mask the layer's weights, refit those that stay, and write them into the graph."""
    layer, original = choice.layer, choice.original
    assert choice.units is not None
    before = original.weight()
    units = choice.granularity.groups(layer.taps, layer.channels)
    weight = np.zeros_like(before)
    bias = original.row_bias(before, original.bias()).astype(np.float64)
    kept = np.zeros((layer.groups, layer.K), dtype=bool)
    error, energy = 0.0, 0.0
    for g in range(layer.groups):
        features = np.sort(units[choice.units[g]].reshape(-1))
        kept[g, features] = True
        moments = rows.moments[g] if rows else None
        W, b = refit.REFITS[choice.refit](before[g], bias[g], features, moments)
        if rows is not None and moments is not None:
            if choice.refit in refit.NEEDS_DATA and spool is not None and feeds_rectifier(layer):
                cached = rows.cached(g, features, spool)
                W, b, residual = rectified.refine(W, b, before[g], features, moments, cached)
            else:
                residual = refit.residual(W, b, features, moments)
            error, energy = error + residual, energy + float(moments.energy().sum())
        weight[g, features], bias[g] = W, b
    has_bias = original.bias() is not None or choice.refit in refit.NEEDS_DATA
    layer.store(weight, layer.bias_from_rows(bias) if has_bias else None)
    layer.kept = kept.reshape(layer.kept.shape)
    if rows is not None:
        choice.error = error / max(energy, 1e-30)


def feeds_rectifier(layer: LinearLayer) -> bool:
    """True where nothing but ReLU, perhaps behind a max pooling, reads the layer's outputs."""

    def rectified_only(tensor: gs.Tensor) -> bool:
        if any(tensor is output for output in layer.graph.outputs) or not tensor.outputs:
            return False
        return all(
            user.op == "Relu" or (user.op == "MaxPool" and len(user.outputs) == 1 and rectified_only(user.outputs[0]))
            for user in tensor.outputs
        )

    return layer.op != "ConvTranspose" and rectified_only(layer.y)
