"""Streamed second-order statistics of a linear layer: the Gram matrices that obs and least squares need."""

from __future__ import annotations

from typing import Any

import numpy as np

from deftonnx.arrays import array_module

Array = np.ndarray[Any, Any]


class Moments:
    """Means and centred second moments of rows X (R, K) of the reduced model and rows Y (R, N) of the original's.

    Rows are added in batches and forgotten, so memory is about K² + K·N whatever their number. Products are taken
    in float32 around the first batch's mean and summed in float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift_x: Any = None

    def add(self, X: Array, Y: Array) -> None:
        """Add rows X (R, K) and Y (R, N), float32."""
        if not len(X):
            return
        xp = array_module()
        X, Y = xp.asarray(X), xp.asarray(Y)
        if self._shift_x is None:
            K, N = X.shape[1], Y.shape[1]
            self._shift_x, self._shift_y = X.mean(0), Y.mean(0)
            self._sum_x, self._sum_y = xp.zeros(K), xp.zeros(N)
            self._xx, self._xy, self._yy = xp.zeros((K, K)), xp.zeros((K, N)), xp.zeros(N)
        X, Y = X - self._shift_x, Y - self._shift_y
        self.count += len(X)
        self._sum_x += X.sum(0, dtype=np.float64)
        self._sum_y += Y.sum(0, dtype=np.float64)
        self._xx += X.T @ X
        self._xy += X.T @ Y
        self._yy += xp.square(Y).sum(0, dtype=np.float64)

    @property
    def finite(self) -> bool:
        """False where a row of X or Y held NaN or an infinity."""
        return self.count == 0 or bool(np.isfinite(float(self._sum_x.sum() + self._sum_y.sum())))

    @property
    def mean_x(self) -> Array:
        """Mean of X, (K,)."""
        return self._shift_x + self._sum_x / self.count

    @property
    def mean_y(self) -> Array:
        """Mean of Y, (N,)."""
        return self._shift_y + self._sum_y / self.count

    def gram(self) -> Array:
        """ZᵀZ/n of the centred rows Z = X − mean, (K, K) float64."""
        mean = self._sum_x / self.count
        return self._xx / self.count - mean[:, None] * mean

    def cross(self) -> Array:
        """Zᵀ(Y − mean)/n, (K, N) float64."""
        return self._xy / self.count - (self._sum_x / self.count)[:, None] * (self._sum_y / self.count)

    def energy(self) -> Array:
        """Variance of every column of Y, (N,) float64."""
        return self._yy / self.count - np.square(self._sum_y / self.count)
