"""Optimal brain surgeon on groups of features: remove the unit whose loss grows the ridge objective least.

With W = H⁻¹G, removing unit g and re-solving the rest raises the objective by tr(W_gᵀ [(H⁻¹)_gg]⁻¹ W_g) exactly.
Outputs are weighed as the layers that read them do (`readout`), where that is known.
Removal goes in batches, each followed by the Schur-complement update of W and H⁻¹, and is nested: one order serves
every density (Hassibi & Stork 1993; the Gram matrix as in design.md, 'Algorithms').
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deftonnx.arrays import array_module, to_numpy
from deftonnx.elimination.problem import Array, Member, ridge_system

needs_data = True
DEAD = 1e-10
"""Inputs whose variance is below this fraction of the mean are constant: the bias replaces them at no cost."""
ROUNDS = 192
"""Rounds that removing everything would take; what a round removes does not depend on where the removal will stop, so
what a smaller density keeps is part of what a larger one keeps."""


def keep(members: list[Member], count: int) -> Array:
    """Indices of the `count` units to keep, ascending."""
    states = [_State(member) for member in members]
    total = len(members[0].units)
    alive = np.arange(total)
    batch = -(-total // ROUNDS)
    while len(alive) > count:
        scores = sum(state.scores() for state in states)
        go = np.sort(np.argsort(to_numpy(scores), kind="stable")[: min(batch, len(alive) - count)])
        for state in states:
            state.remove(go)
        alive = np.delete(alive, go)
    return alive


class _State:
    """H⁻¹ and W of the features still alive, grouped by unit: rows [i · size, (i + 1) · size) are unit i's."""

    def __init__(self, member: Member) -> None:
        assert member.moments is not None
        xp = array_module()
        order = member.units.reshape(-1)
        self.size = member.units.shape[1]
        H, G = ridge_system(member.moments, member.weight)
        H, G = H[order][:, order], G[order]
        self.inverse = xp.linalg.inv(H)  # (K, K)
        energy = member.moments.energy()
        if member.readout is not None:
            readout = xp.asarray(member.readout)
            G, energy = G @ readout, energy * xp.square(readout).sum(1)
        self.weight = self.inverse @ G  # (K, N), or (K, R) as the readers see it
        self.energy = max(float(energy.sum()), 1e-30)
        variance = member.moments.gram().diagonal()[order].reshape(-1, self.size)
        limit = DEAD * max(float(variance.mean()), 1e-30)
        self.dead = xp.all(variance <= limit, axis=1)  # (units,)

    def scores(self) -> Any:
        """Growth of the objective for each unit alive, as a fraction of the outputs' variance, (units,)."""
        xp = array_module()
        units = len(self.weight) // self.size
        W = self.weight.reshape(units, self.size, -1)
        if self.size == 1:
            growth = xp.square(W[:, 0]).sum(1) / self.inverse.diagonal()
        else:
            index = np.arange(units)
            blocks = self.inverse.reshape(units, self.size, units, self.size)[index, :, index, :]
            growth = (W * xp.linalg.solve(blocks, W)).sum((1, 2))
        return xp.where(self.dead, 0.0, growth / self.energy)

    def remove(self, go: Array) -> None:
        """Drop the units at positions `go` and update what is left by the Schur complement."""
        xp = array_module()
        features = (go[:, None] * self.size + np.arange(self.size)).reshape(-1)
        stay = np.delete(np.arange(len(self.weight)), features)
        self.dead = self.dead[np.delete(np.arange(len(self.dead)), go)]
        cross = self.inverse[stay][:, features]  # (stay, gone)
        factor = xp.linalg.solve(self.inverse[features][:, features], cross.T)  # (gone, stay)
        self.weight = self.weight[stay] - factor.T @ self.weight[features]
        self.inverse = self.inverse[stay][:, stay] - cross @ factor
