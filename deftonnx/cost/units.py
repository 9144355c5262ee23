"""In what units a layer's features are to be eliminated: the finest of those that are fast.

Either the layer alone gets smaller: a kernel reads some of its features, single ones, vectors or blocks. Or the
layers that make the features leave them out, so that what they write gets smaller as well: that is how the hidden
features of a perceptron go, and whole channels and heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deftonnx.cost.work import Form, Product, Work
from deftonnx.elimination.groups import ELEMENT, Granularity
from deftonnx.layers import LinearLayer

FINER = 1.05
"""A finer granularity costs less accuracy, so it is preferred while it takes at most this much longer."""
WALKED = ("vector", "block:32", "block:64")

Part = tuple[Work, Form]
Seconds = list[float]
"""One for each batch size."""


@dataclass(frozen=True)
class Ways:
    """What may be done to a layer. `packable`: one of our operators can compute it. `coarse`: also what costs accuracy.
    `whole`: the granularity at which `makers` leave features out; None where they do not."""

    packable: bool
    coarse: bool
    whole: str | None
    makers: Sequence[LinearLayer]


@dataclass(frozen=True)
class Candidates:
    """Of one layer. `parts`: it and the layers that make its features, as they are written so far; `walked`: of the
    layer with some features, by granularity, finest first; `whole`: of all `parts` without the features."""

    parts: list[Part]
    walked: dict[str, Part]
    whole: tuple[str, list[Part]] | None


@dataclass(frozen=True)
class Pick:
    """`name`: the granularity that is best, and its seconds beside those of `dense`, the layers that make the features
    included if those get smaller. `fast`: how many times faster that is."""

    name: str
    dense: Seconds
    seconds: Seconds
    whole: bool

    @property
    def fast(self) -> float:
        return gain(self.dense, self.seconds)


def walked(own: Part, layer: LinearLayer, density: float, ways: Ways) -> dict[str, Part]:
    """The layer's own ways to read some of its features only, finest first.

    Blocks of a product's features are coarse: unlike a convolution's, they cost accuracy.
    """
    work, form = own
    if ways.whole == ELEMENT:
        return {}
    found: dict[str, Part] = {}
    if isinstance(work, Product):
        reads: dict[str, Any] = {"block": 1} if ways.packable else {"gather": True}
        found[ELEMENT] = (work, replace(form, density=density, **reads))
    if ways.packable and (ways.coarse or not isinstance(work, Product)):
        for width in WALKED:
            fitting = Granularity.parse(width).fit(layer.taps, layer.channels)
            if fitting.width > 1:
                found.setdefault(fitting.name, (work, replace(form, density=density, block=fitting.width)))
    return found


def with_fewer_inputs(part: Part, density: float) -> Part:
    """The layer when `density` of its input features, in units of its groups, are left."""
    work, form = part
    if isinstance(work, Product):
        return replace(work, K=max(1, round(work.K * density))), form
    groups = work.window.group
    return replace(work, channels=max(1, round(work.channels * density / groups)) * groups), form


def with_fewer_outputs(part: Part, density: float) -> Part:
    """The layer when `density` of its output features are left."""
    work, form = part
    groups = 1 if isinstance(work, Product) else work.window.group
    return replace(work, N=max(1, round(work.N * density / groups)) * groups), form


def pick(candidates: Candidates, seconds: Callable[[Part], Seconds | None]) -> Pick | None:
    """The best of `candidates`; None where it is not known how long they take."""
    dense = [seconds(part) for part in candidates.parts]
    if None in dense or dense[0] is None:
        return None
    known = {name: found for name, part in candidates.walked.items() if (found := seconds(part)) is not None}
    best = None
    if known:
        fastest = max(gain(dense[0], time) for time in known.values())
        name = next(name for name, time in known.items() if gain(dense[0], time) * FINER >= fastest)
        best = Pick(name, dense[0], known[name], whole=False)
    if candidates.whole is None:
        return best
    name, parts = candidates.whole
    times = [seconds(part) for part in parts]
    if None in times:
        return best
    whole = Pick(name, total(dense), total(times), whole=True)
    if best is None:
        return whole
    rest = total([known[best.name], *dense[1:]]) if best.fast > 1 else whole.dense
    return whole if gain(rest, whole.seconds) > FINER else best


def total(times: Sequence[Seconds | None]) -> Seconds:
    """The sum for each batch size."""
    return [sum(column) for column in zip(*(time for time in times if time is not None), strict=True)]


def gain(before: Seconds, after: Seconds) -> float:
    """How many times faster: the geometric mean over batch sizes."""
    logs = [math.log(b / a) for b, a in zip(before, after, strict=True)]
    return math.exp(sum(logs) / len(logs))
