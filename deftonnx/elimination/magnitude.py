"""Keep the units with the largest weights: the simplest baseline, needs no data."""

from __future__ import annotations

import numpy as np

from deftonnx.elimination.problem import Array, Member

needs_data = False


def keep(members: list[Member], count: int) -> Array:
    """Indices of the `count` units with the largest mean square weight, ascending."""
    scores = sum(
        np.square(m.weight).sum(1)[m.units].sum(1) / max(float(np.square(m.weight).sum()), 1e-30) for m in members
    )
    order = np.argsort(-np.asarray(scores), kind="stable")
    return np.sort(order[:count])
