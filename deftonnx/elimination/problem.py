"""What a criterion sees: the weights (and statistics) of the layers that must make one common choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deftonnx.arrays import array_module
from deftonnx.calibration.statistics import Moments

Array = np.ndarray[Any, Any]
RIDGE = 1e-3
"""λ as a fraction of the Gram matrix's mean diagonal (design: 'default' algorithm)."""


@dataclass
class Member:
    """One weight matrix of the choice: `weight` (K, N), `units` (units, size) feature indices, its statistics, and
    `readout` (N, R), through which errors of its outputs are seen (`readout.metric_factor`)."""

    weight: Array
    units: Array
    moments: Moments | None = None
    readout: Array | None = None


class Criterion(Protocol):
    """Picks the units to keep."""

    needs_data: bool

    def keep(self, members: list[Member], count: int) -> Array:
        """Indices of the `count` units to keep, ascending. Every member has the same number of units."""


def ridge_system(moments: Moments, weight: Array) -> tuple[Any, Any]:
    """H = ZᵀZ/n + λI (K, K) and G = Zᵀ(Y* − mean)/n + λW₀ (K, N), float64, on the array module's device.

    The ridge pulls towards the original weights W₀, not to zero.
    """
    H, G = moments.gram(), moments.cross()
    diagonal = H.diagonal()
    ridge = RIDGE * float(diagonal.mean()) or 1.0
    H.flat[:: len(H) + 1] += ridge
    return H, G + ridge * array_module().asarray(weight)
