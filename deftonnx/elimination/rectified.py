"""Least squares where only a rectifier reads the outputs: how far below zero an output lies does not matter.

Minimises, over the kept weights and the bias, the mean over rows and outputs of

    (y − y*)²  where y* > 0,    max(y, 0)²  where y* ≤ 0

for y = x·W + b: convex, and what ReLU passes on (asymmetric reconstruction, Zhang et al. 2015, in a simpler form).
Each round replaces the targets by ones that the rectifier cannot tell from the original's, min(y, 0) where y* ≤ 0,
and re-solves; since the Gram matrix stays, a round costs two thin products. Nesterov's momentum speeds it up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deftonnx.arrays import array_module, to_numpy
from deftonnx.calibration.statistics import Moments
from deftonnx.elimination.problem import Array, ridge_system

ROUNDS = 6
Rows = Callable[[], Iterator[tuple[Array, Array]]]


def refine(
    weight: Array, bias: Array, original: Array, kept: Array, moments: Moments, rows: Rows
) -> tuple[Array, Array, float]:
    """Improve the least-squares weights (K', N) and bias (N,) of the `kept` features.

    `original` are the layer's weights (K, N), towards which the ridge pulls. `rows` streams the calibration rows
    again: kept features (R, K') of the reduced model and the original's outputs (R, N), both float32. Returns the
    weights, the bias, and the objective at the last round's start.
    """
    xp = array_module()
    H, _ = ridge_system(moments, original)
    ridge = float(H[0, 0] - moments.gram()[0, 0])
    inverse = xp.linalg.inv(H[kept][:, kept])
    pull = ridge * xp.asarray(original[kept], dtype=np.float64)
    mean = moments.mean_x[kept]
    W, b = xp.asarray(weight, dtype=np.float64), xp.asarray(bias, dtype=np.float64)
    ahead_W, ahead_b = W, b
    objective = 0.0
    for round_number in range(ROUNDS):
        cross, target_mean, objective = _pass(ahead_W, ahead_b, mean, rows)
        next_W = inverse @ (cross + pull)
        next_b = target_mean - mean @ next_W
        momentum = round_number / (round_number + 3)
        ahead_W, ahead_b = next_W + momentum * (next_W - W), next_b + momentum * (next_b - b)
        W, b = next_W, next_b
    return to_numpy(W), to_numpy(b), objective


def _pass(W: Any, b: Any, mean: Any, rows: Rows) -> tuple[Any, Any, float]:
    """Zᵀ(targets)/n (K', N), the targets' means (N,) and the mean objective, at weights W and bias b."""
    xp = array_module()
    W32, b32, mean32 = W.astype(np.float32), b.astype(np.float32), mean.astype(np.float32)
    cross, total, objective, count = xp.zeros(W.shape), xp.zeros(W.shape[1]), 0.0, 0
    for X, Y in rows():
        X, Y = xp.asarray(X), xp.asarray(Y)
        y = X @ W32 + b32
        target = xp.where(Y > 0, Y, xp.minimum(y, 0))
        objective += float(xp.square(y - target).sum(dtype=np.float64))
        cross += (X - mean32).T @ target
        total += target.sum(0, dtype=np.float64)
        count += len(X)
    return cross / count, total / count, objective / count
