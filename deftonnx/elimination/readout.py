"""How much an error in one layer's outputs matters to the layers that read them.

An error e in the outputs reaches a reader's outputs as e·P, where P are the reader's weights: to first order, an
activation in between left out, the loss is |e·P|² rather than |e|². Elimination is scored in that metric. (The refit
is not: least squares with enough freedom for every output is the same in any metric.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deftonnx.layers import LinearLayer

Array = np.ndarray[Any, Any]
LARGEST = 4096
"""Output features up to which the full metric is used."""
FLOOR = 1e-6


def metric_factor(layer: LinearLayer, readers: list[tuple[LinearLayer, Array]]) -> list[Array] | None:
    """L (outputs, outputs) of each weight group, with L·Lᵀ = Σ P·Pᵀ over the readers; None where it is not known.

    `readers` are as `rewrite.absorb.readers` gives them.
    """
    if not readers or layer.output_features != layer.groups * layer.outputs or layer.N > LARGEST:
        return None
    metric = np.zeros((layer.N, layer.N))
    for reader, source in readers:
        weight = reader.weight().reshape(reader.groups, reader.taps, reader.channels, -1)
        for g, group in enumerate(weight.transpose(0, 2, 1, 3)):  # (channels, taps, outputs)
            shared = reader.input_features == reader.channels
            _add(metric, group.reshape(reader.channels, -1), source if shared else np.split(source, reader.groups)[g])
    factors = []
    for g in range(layer.groups):
        rows = slice(g * layer.outputs, (g + 1) * layer.outputs)
        block = metric[rows, rows]
        if not block.any():
            return None
        floor = FLOOR * np.trace(block) / len(block)
        factors.append(np.linalg.cholesky(block + floor * np.eye(len(block))))
    return factors


def _add(metric: Array, P: Array, source: Array) -> None:
    """Add P·Pᵀ for rows P (channels, columns) that come from output features `source` (−1: from elsewhere).

    After a Flatten a feature has one row for each pixel; pixels are independent columns then.
    """
    rows = np.flatnonzero(source >= 0)
    rows = rows[np.argsort(source[rows], kind="stable")]
    features, counts = np.unique(source[rows], return_counts=True)
    if len(set(counts.tolist())) != 1:
        return
    P = P[rows].reshape(len(features), -1).astype(np.float64)
    metric[np.ix_(features, features)] += P @ P.T
