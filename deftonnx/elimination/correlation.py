"""The paper's synapse search (§4.1.2): keep a few synapse vectors that represent the others.

S_i is the weights of unit i across all outputs. ρ is their correlation matrix (equation 6); S_i represents S_j where
ρ_ij ≥ α; the vector that represents most (equation 7) is kept, those it represents are discarded, and so on until
every vector is either kept or discarded.
"""

from __future__ import annotations

import numpy as np

from deftonnx.elimination.problem import Array, Member

needs_data = False


def correlation_matrix(vectors: Array) -> Array:
    """ρ of the rows of `vectors` (units, length), equation 6. A constant vector correlates with nothing but itself."""
    centred = vectors - vectors.mean(1, keepdims=True)
    norm = np.sqrt(np.square(centred).sum(1))
    unit = np.divide(centred, norm[:, None], out=np.zeros_like(centred), where=norm[:, None] > 0)
    rho = unit @ unit.T
    np.fill_diagonal(rho, 1.0)
    return rho


def representatives(rho: Array, alpha: float) -> Array:
    """Indices of the vectors kept at threshold α, ascending (equation 7, greedily; ties go to the lower index)."""
    represents = rho >= alpha
    counts = represents.sum(1)
    left = np.ones(len(rho), dtype=bool)
    kept = []
    while left.any():
        best = int(np.argmax(np.where(left, counts, -1)))
        kept.append(best)
        gone = np.flatnonzero(represents[best] & left)
        left[gone] = False
        left[best] = False
        counts = counts - represents[:, gone].sum(1)
    return np.sort(np.array(kept, dtype=np.int64))


def synapse_vectors(members: list[Member]) -> Array:
    """The weights of every unit across all members' outputs, (units, length) float64."""
    return np.concatenate([m.weight[m.units].reshape(len(m.units), -1).astype(np.float64) for m in members], axis=1)


def keep(members: list[Member], count: int) -> Array:
    """The units kept at the largest threshold α that keeps at most `count` of them."""
    rho = correlation_matrix(synapse_vectors(members))
    low, high = -1.0, 1.0  # at α = −1 one vector represents all
    best = representatives(rho, low)
    for _ in range(24):
        alpha = (low + high) / 2
        kept = representatives(rho, alpha)
        if len(kept) > count:
            high = alpha
        else:
            low, best = alpha, kept
        if len(kept) == count:
            break
    return best


def keep_at(members: list[Member], alpha: float) -> Array:
    """The units kept at threshold α."""
    return representatives(correlation_matrix(synapse_vectors(members)), alpha)
