"""Eliminates layer by layer in topological order, each on the activations of the already reduced model.

The graph keeps its shape here: weights of eliminated features become zero, and `LinearLayer.kept` records the choice.
Removing the zeros for good is the rewrite passes' work, and this masked graph is what they must equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.calibration.activations import ActivationStream, Feed
from deftonnx.calibration.spool import Spool
from deftonnx.calibration.statistics import Moments
from deftonnx.elimination import correlation, magnitude, obs, refit
from deftonnx.elimination.groups import Granularity
from deftonnx.elimination.problem import Member
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
    units: list[Array] | None = None
    """Kept units of every group, where a plan gives them; filled in otherwise."""
    error: float | None = None
    """‖Y − Y*‖²/‖Y* − mean‖² on the calibration rows after the refit."""

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
            _decide(group, None)
            for choice in group:
                report(choice)
        return
    spool = Spool()
    try:
        reference = ActivationStream.start(original, batches, spool)
        reduced: ActivationStream | None = None
        for serial, group in enumerate(groups):
            reference.advance(_position(original, [c.original for c in group]))
            if reduced is not None:
                reduced.advance(_position(graph, [c.layer for c in group]))
            _decide(group, _statistics(group, reference, reduced or reference, seed + serial))
            if reduced is None:
                reduced = reference.fork(graph)
            for choice in group:
                report(choice)
    finally:
        spool.close()


def _position(graph: gs.Graph, layers: list[LinearLayer]) -> int:
    return min(next(i for i, n in enumerate(graph.nodes) if n is layer.node) for layer in layers)


def _statistics(
    group: list[Choice], reference: ActivationStream, reduced: ActivationStream, seed: int
) -> list[list[Moments]]:
    """For every layer of the group, one Moments per weight group."""
    count = len(next(iter(reference.live.values())))
    result = []
    for choice in group:
        layer, original = choice.layer, choice.original
        moments = [Moments() for _ in range(layer.groups)]
        limit = -(-max(MIN_ROWS, ROWS_PER_FEATURE * layer.K) // count)
        weight = original.weight().astype(np.float32)
        bias = original.row_bias(weight, original.bias())
        for serial, (x, x_reduced) in enumerate(_pairs(layer.x.name, reference, reduced)):
            rows = original.rows(x, limit, np.random.default_rng([seed, serial]))  # (rows, groups, K)
            rows_reduced = rows
            if x_reduced is not x:
                rows_reduced = layer.rows(x_reduced, limit, np.random.default_rng([seed, serial]))
            for g, m in enumerate(moments):
                m.add(rows_reduced[:, g], rows[:, g] @ weight[g] + bias[g].astype(np.float32))
        result.append(moments)
    return result


def _pairs(
    name: str, reference: ActivationStream, reduced: ActivationStream
) -> Iterator[tuple[Array, Array]]:
    if reduced is reference:
        yield from ((x, x) for x in reference.batches(name))
    else:
        yield from zip(reference.batches(name), reduced.batches(name), strict=True)


def _decide(group: list[Choice], statistics: list[list[Moments]] | None) -> None:
    """Pick the kept units of a sibling group, then mask and refit each of its layers."""
    moments = statistics or [[None] * c.layer.groups for c in group]  # type: ignore[list-item]
    members = [
        [
            Member(weight, choice.granularity.groups(choice.layer.taps, choice.layer.channels), m)
            for weight, m in zip(choice.original.weight(), choice_moments, strict=True)
        ]
        for choice, choice_moments in zip(group, moments, strict=True)
    ]  # [layer][group]
    _select(group, members)
    for choice, layer_members in zip(group, members, strict=True):
        _refit(choice, layer_members)


def _select(group: list[Choice], members: list[list[Member]]) -> None:
    first = group[0]
    if first.units is not None:
        return
    criterion = CRITERIA[first.criterion]
    together = [list(column) for column in zip(*members, strict=True)]  # [group][layer]
    if first.layer.shares_choice:
        together = [[m for column in together for m in column]]
    if first.alpha is not None:
        units = [correlation.keep_at(m, first.alpha) for m in together]
        most = max(len(u) for u in units)
        units = [
            correlation.keep(m, most) if len(u) != most else u for m, u in zip(together, units, strict=True)
        ]
    else:
        units = [criterion.keep(m, kept_count(first.density, len(m[0].units))) for m in together]
    least = min(len(u) for u in units)
    units = [u[:least] for u in units]  # groups of one layer keep equally many
    for choice in group:
        choice.units = units * (choice.layer.groups // len(units))


def kept_count(density: float, units: int) -> int:
    """Units kept of `units` at this density: the nearest number, down at a tie, at least one."""
    return max(1, int(np.ceil(density * units - 0.5)))


def _refit(choice: Choice, members: list[Member]) -> None:
    layer, original = choice.layer, choice.original
    assert choice.units is not None
    weight = np.zeros_like(original.weight())
    bias = original.row_bias(weight, original.bias()).astype(np.float64)
    kept = np.zeros((layer.groups, layer.K), dtype=bool)
    unexplained, energy = 0.0, 0.0
    for g, member in enumerate(members):
        features = np.sort(member.units[choice.units[g]].reshape(-1))
        kept[g, features] = True
        weight[g, features], bias[g] = refit.REFITS[choice.refit](
            member.weight, bias[g], features, member.moments
        )
        if member.moments is not None:
            residual, total = refit.residual(weight[g, features], bias[g], features, member.moments)
            unexplained, energy = unexplained + residual, energy + total
    has_bias = original.bias() is not None or choice.refit in refit.NEEDS_DATA
    layer.store(weight, layer.bias_from_rows(bias) if has_bias else None)
    layer.kept = kept.reshape(layer.kept.shape)
    if members[0].moments is not None:
        choice.error = unexplained / max(energy, 1e-30)
