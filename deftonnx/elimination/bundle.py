"""Layers that see the same rows of X, taken as one wide layer: their statistics, their weights, their refit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.calibration.activations import ActivationStream
from deftonnx.calibration.spool import Spool
from deftonnx.calibration.statistics import Moments
from deftonnx.elimination import rectified, refit
from deftonnx.elimination.choice import Choice
from deftonnx.elimination.problem import Member
from deftonnx.elimination.readout import metric_factor
from deftonnx.elimination.rectified import Rows
from deftonnx.errors import UnsupportedError
from deftonnx.layers import LinearLayer

Array = np.ndarray[Any, Any]
MIN_ROWS = 65536
ROWS_PER_FEATURE = 32
FEWEST_ROWS_PER_FEATURE = 8
GRAM_WORK = 4e11
"""Rows of X sampled for a layer's statistics: MIN_ROWS, or ROWS_PER_FEATURE · K where that is more; fewer for a very
wide layer, whose Gram matrix would take more than GRAM_WORK multiply-adds, down to FEWEST_ROWS_PER_FEATURE · K."""


class Bundle:
    """Choices whose layers read one tensor with one geometry (Q, K and V, say); most bundles hold one.

    `weight` (groups, K, outputs) and `bias` (groups, outputs) are the originals' side by side.
    """

    def __init__(self, choices: list[Choice]) -> None:
        self.choices = choices
        self.layer, self.original = choices[0].layer, choices[0].original
        weights = [choice.original.weight() for choice in choices]
        self.weight = np.concatenate(weights, axis=2)
        biases = [c.original.row_bias(w, c.original.bias()) for c, w in zip(choices, weights, strict=True)]
        self.bias = np.concatenate(biases, axis=1)
        self.ends = np.cumsum([w.shape[2] for w in weights])[:-1]
        self.units = choices[0].granularity.groups(self.layer.taps, self.layer.channels)
        self.moments: list[Moments] | None = None

    def observe(self, reference: ActivationStream, reduced: ActivationStream, seed: int) -> None:
        """Gather the statistics of X in the `reduced` model and of the original's outputs."""
        self.reference, self.reduced, self.seed = reference, reduced, seed
        batches = len(next(iter(reference.live.values())))
        self.limit = -(-sampled_rows(self.layer.K) // batches)
        self.moments = [Moments() for _ in range(self.layer.groups)]
        for X, Y in self._rows():
            for g, moments in enumerate(self.moments):
                moments.add(X[:, g], Y[:, g])
        if not all(moments.finite for moments in self.moments):
            raise UnsupportedError(
                f"inputs or outputs of {self.layer.op} '{self.layer.name}' are NaN or infinite on the calibration data:"
                " leave it out with --nodes-to-exclude"
            )

    def members(self) -> list[Member]:
        """What a criterion sees, one for each weight group."""
        if self.moments is None:
            return [Member(w, self.units) for w in self.weight]
        factors = [metric_factor(choice.original, choice.readers) for choice in self.choices]
        return [
            Member(w, self.units, moments, None if None in factors else _side_by_side([f[g] for f in factors if f]))
            for g, (w, moments) in enumerate(zip(self.weight, self.moments, strict=True))
        ]

    def refit(self, spool: Spool | None) -> None:
        """Mask the layers' weights, refit those that stay, and write them into the graph."""
        first = self.choices[0]
        assert first.units is not None
        weight, bias = np.zeros_like(self.weight), self.bias.astype(np.float64)
        kept = np.zeros((self.layer.groups, self.layer.K), dtype=bool)
        error, energy = 0.0, 0.0
        for g in range(self.layer.groups):
            features = np.sort(self.units[first.units[g]].reshape(-1))
            kept[g, features] = True
            moments = self.moments[g] if self.moments else None
            W, b = refit.REFITS[first.refit](self.weight[g], bias[g], features, moments)
            if moments is not None:
                if first.refit in refit.NEEDS_DATA and spool is not None and self._feeds_rectifier():
                    rows = self._cached(g, features, spool)
                    W, b, residual = rectified.refine(W, b, self.weight[g], features, moments, rows)
                else:
                    residual = refit.residual(W, b, features, moments)
                error, energy = error + residual, energy + float(moments.energy().sum())
            weight[g, features], bias[g] = W, b
        parts = zip(np.split(weight, self.ends, axis=2), np.split(bias, self.ends, axis=1), strict=True)
        for choice, (W, b) in zip(self.choices, parts, strict=True):
            corrected = choice.original.bias() is not None or choice.refit in refit.NEEDS_DATA
            choice.layer.store(W, choice.layer.bias_from_rows(b) if corrected else None)
            choice.layer.kept = kept.reshape(choice.layer.kept.shape).copy()
            choice.error = error / max(energy, 1e-30) if self.moments else None

    def _rows(self) -> Iterator[tuple[Array, Array]]:
        """Batches of X (rows, groups, K) and Y* (rows, groups, outputs), float32; the same ones every time."""
        weight, bias = self.weight.astype(np.float32), self.bias.astype(np.float32)
        for serial, (x, x_reduced) in enumerate(self._activations()):
            X = self.original.rows(x, self.limit, np.random.default_rng([self.seed, serial]))
            Y = np.stack([X[:, g] @ weight[g] + bias[g] for g in range(len(weight))], axis=1)
            if x_reduced is not x:
                X = self.layer.rows(x_reduced, self.limit, np.random.default_rng([self.seed, serial]))
            yield X, Y

    def _activations(self) -> Iterator[tuple[Array, Array]]:
        name = self.layer.x.name
        if self.reduced is self.reference:
            yield from ((x, x) for x in self.reference.batches(name))
        else:
            yield from zip(self.reference.batches(name), self.reduced.batches(name), strict=True)

    def _cached(self, g: int, kept: Array, spool: Spool) -> Rows:
        """The kept features and outputs of weight group `g`, spooled for several passes."""
        stored = [(spool.store(X[:, g, kept]), spool.store(Y[:, g])) for X, Y in self._rows() if len(X)]
        return lambda: ((X.load(), Y.load()) for X, Y in stored)

    def _feeds_rectifier(self) -> bool:
        return all(feeds_rectifier(choice.layer) for choice in self.choices)


def sampled_rows(K: int) -> int:
    """Rows of X that the statistics of a layer with K input features are made of, if the data has as many."""
    wanted = max(MIN_ROWS, ROWS_PER_FEATURE * K)
    return min(wanted, max(FEWEST_ROWS_PER_FEATURE * K, int(GRAM_WORK / K**2)))


def feeds_rectifier(layer: LinearLayer) -> bool:
    """True where nothing but ReLU, perhaps behind a max pooling, reads the layer's outputs."""

    def rectified_only(tensor: gs.Tensor) -> bool:
        if any(tensor is output for output in layer.graph.outputs) or not tensor.outputs:
            return False
        return all(
            user.op == "Relu" or (user.op == "MaxPool" and len(user.outputs) == 1 and rectified_only(user.outputs[0]))
            for user in tensor.outputs
        )

    return layer.op != "ConvTranspose" and rectified_only(layer.y)


def _side_by_side(blocks: list[Array]) -> Array:
    """The block-diagonal matrix of `blocks`."""
    if len(blocks) == 1:
        return blocks[0]
    size = sum(len(block) for block in blocks)
    result, at = np.zeros((size, size)), 0
    for block in blocks:
        result[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return result
