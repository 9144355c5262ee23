"""How layers are to be reduced, and which of them must agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deftonnx.elimination import correlation, magnitude, obs, refit
from deftonnx.elimination.groups import CHANNEL, Granularity
from deftonnx.layers import LinearLayer

Array = np.ndarray[Any, Any]
CRITERIA: dict[str, Any] = {"obs": obs, "correlation": correlation, "magnitude": magnitude}


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
        same = (id(layer.x), choice.granularity, choice.density, choice.criterion, choice.refit)
        channels = (layer.input_axis, layer.groups, layer.channels)
        units = channels if choice.granularity.name == CHANNEL else layer.geometry
        together.setdefault((*same, *units), []).append(choice)
    return list(together.values())


def kept_count(density: float, units: int) -> int:
    """Units kept of `units` at this density: the nearest number, down at a tie, at least one."""
    return max(1, int(np.ceil(density * units - 0.5)))
