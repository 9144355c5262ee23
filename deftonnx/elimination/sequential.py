"""Eliminates layer by layer in topological order, each on the activations of the already reduced model.

The graph keeps its shape here: weights of eliminated features become zero, and `LinearLayer.kept` records the choice.
Removing the zeros for good is the rewrite passes' work, and this masked graph is what they must equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.calibration.activations import ActivationStream, Feed
from deftonnx.calibration.spool import Spool
from deftonnx.elimination import correlation
from deftonnx.elimination.bundle import Bundle
from deftonnx.elimination.choice import CRITERIA, Choice, kept_count
from deftonnx.layers import LinearLayer

Array = np.ndarray[Any, Any]


def eliminate(
    graph: gs.Graph,
    original: gs.Graph,
    groups: list[list[Choice]],
    batches: list[Feed] | None,
    seed: int,
    report: Callable[[Choice], None] = lambda choice: None,
) -> None:
    """Choose and refit every group of siblings; `graph` is masked in place, `original` stays as it was."""
    spool, reference, reduced = None, None, None
    try:
        for serial, group in enumerate(groups):
            bundles = [Bundle(choices) for choices in _same_rows(group)]
            if batches is not None and any(choice.needs_data for choice in group):
                if spool is None or reference is None or reduced is None:
                    spool = Spool()
                    reference = ActivationStream.start(original, batches, spool)
                    reduced = reference if serial == 0 else ActivationStream.start(graph, batches, spool)
                reference.advance(_position(original, [choice.original for choice in group]))
                if reduced is not reference:
                    reduced.advance(_position(graph, [choice.layer for choice in group]))
                for bundle in bundles:
                    bundle.observe(reference, reduced, seed + serial)
            _select(group, bundles)
            for bundle in bundles:
                bundle.refit(spool)
            for choice in group:
                report(choice)
            if reference is not None and reduced is reference:
                reduced = reference.fork(graph)
    finally:
        if spool is not None:
            spool.close()


def _same_rows(group: list[Choice]) -> list[list[Choice]]:
    """The siblings that see the same rows of X, together."""
    together: dict[Any, list[Choice]] = {}
    for choice in group:
        together.setdefault(choice.layer.geometry, []).append(choice)
    return list(together.values())


def _position(graph: gs.Graph, layers: list[LinearLayer]) -> int:
    return min(next(i for i, n in enumerate(graph.nodes) if n is layer.node) for layer in layers)


def _select(group: list[Choice], bundles: list[Bundle]) -> None:
    """Pick the kept units of a sibling group."""
    first = group[0]
    if first.units is not None:
        return
    members = [list(column) for column in zip(*(bundle.members() for bundle in bundles), strict=True)]
    if first.layer.shares_choice:  # one choice for all weight groups
        members = [[member for column in members for member in column]]
    if first.alpha is not None:
        units = [correlation.keep_at(m, first.alpha) for m in members]
        most = max(len(u) for u in units)
        units = [correlation.keep(m, most) if len(u) != most else u for m, u in zip(members, units, strict=True)]
    else:
        criterion = CRITERIA[first.criterion]
        units = [criterion.keep(m, kept_count(first.density, len(m[0].units))) for m in members]
    least = min(len(u) for u in units)
    units = [u[:least] for u in units]  # groups of one layer keep equally many
    for choice in group:
        choice.units = units * (choice.layer.groups // len(units))
