"""What is done to the weights that stay: the paper's scale, least squares on calibration activations, or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from deftonnx.arrays import array_module, to_numpy
from deftonnx.calibration.statistics import Moments
from deftonnx.elimination.problem import Array, ridge_system


def scale(weight: Array, bias: Array, kept: Array, moments: Moments | None) -> tuple[Array, Array]:
    """The kept rows times K/(K − D) (paper equation 5)."""
    return weight[kept] * np.float32(len(weight) / len(kept)), bias


def none(weight: Array, bias: Array, kept: Array, moments: Moments | None) -> tuple[Array, Array]:
    """The kept rows as they are."""
    return weight[kept], bias


def least_squares(weight: Array, bias: Array, kept: Array, moments: Moments | None) -> tuple[Array, Array]:
    """The kept rows (K', N) that best give the original's outputs, and the bias (N,) that corrects the means.

    Solves the kept part of the ridge system afresh in float64 (design.md, 'Algorithms').
    """
    assert moments is not None
    H, G = ridge_system(moments, weight)
    W: Any = array_module().linalg.solve(H[kept][:, kept], G[kept])
    shift = moments.mean_y - moments.mean_x[kept] @ W
    return to_numpy(W), to_numpy(shift)


REFITS = {"scale": scale, "none": none, "least-squares": least_squares}
NEEDS_DATA = {"least-squares"}


def residual(weight: Array, bias: Array, kept: Array, moments: Moments) -> float:
    """Mean of ‖x_kept·W + b − y*‖² over the calibration rows, from their moments."""
    xp = array_module()
    W, b = xp.asarray(weight, dtype=np.float64), xp.asarray(bias, dtype=np.float64)
    H = moments.gram()[kept][:, kept]
    explained = 2 * float((W * moments.cross()[kept]).sum()) - float((W * (H @ W)).sum())
    offset = float(xp.square(moments.mean_x[kept] @ W + b - moments.mean_y).sum())
    return max(float(moments.energy().sum()) - explained + offset, 0.0)
