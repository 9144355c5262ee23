"""The refit for layers whose outputs only a rectifier reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from models import model, prepare

from deftonnx.calibration.statistics import Moments
from deftonnx.elimination import rectified, refit
from deftonnx.elimination.bundle import feeds_rectifier, sampled_rows

Array = np.ndarray[Any, Any]


def problem(rng: np.random.Generator) -> tuple[Array, Array, Array, Array, Moments]:
    """Correlated rows X (2000, 24), outputs Y (2000, 6), weights, kept features and the moments."""
    X = (rng.normal(size=(2000, 24)) @ rng.normal(size=(24, 24)) / 5).astype(np.float32)
    W = rng.normal(size=(24, 6))
    Y = (X @ W - 1).astype(np.float32)
    moments = Moments()
    moments.add(X, Y)
    return X, Y, W, np.arange(0, 24, 2), moments


def loss(X: Array, Y: Array, W: Array, b: Array) -> float:
    """The objective of the module's docstring, written out."""
    y = X @ W + b
    return float(np.where(Y > 0, y - Y, np.maximum(y, 0)).__pow__(2).sum(1).mean())


def test_it_beats_least_squares_on_what_the_rectifier_passes(rng: np.random.Generator) -> None:
    X, Y, W, kept, moments = problem(rng)
    w, b = refit.least_squares(W, np.zeros(6), kept, moments)
    better, bias, _ = rectified.refine(w, b, W, kept, moments, lambda: iter([(X[:, kept], Y)]))
    assert loss(X[:, kept], Y, better, bias) < 0.9 * loss(X[:, kept], Y, w, b)


def test_it_comes_close_to_the_minimum(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y, W, kept, moments = problem(rng)
    w, b = refit.least_squares(W, np.zeros(6), kept, moments)
    results = {}
    for rounds in (rectified.ROUNDS, 400):
        monkeypatch.setattr(rectified, "ROUNDS", rounds)
        better, bias, _ = rectified.refine(w, b, W, kept, moments, lambda: iter([(X[:, kept], Y)]))
        results[rounds] = loss(X[:, kept], Y, better, bias)
    few, many = results.values()
    start = loss(X[:, kept], Y, w, b)
    assert start - few > 0.75 * (start - many)


def test_outputs_that_are_all_positive_get_least_squares(rng: np.random.Generator) -> None:
    X, Y, W, kept, moments = problem(rng)
    Y = Y + 100
    moments = Moments()
    moments.add(X, Y)
    w, b = refit.least_squares(W, np.zeros(6), kept, moments)
    same, bias, _ = rectified.refine(w, b, W, kept, moments, lambda: iter([(X[:, kept], Y)]))
    np.testing.assert_allclose(same, w, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, b, rtol=1e-4)


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("y = Relu (a)", True),
        ("p = MaxPool <kernel_shape = [2,2]> (a) y = Relu (p)", True),
        ("y = Sigmoid (a)", False),
        ("r = Relu (a) y = Add (r, a)", False),
        ("p = MaxPool <kernel_shape = [2,2]> (a) y = Neg (p)", False),
    ],
)
def test_what_feeds_a_rectifier(tail: str, expected: bool) -> None:
    text = f"graph (float[N,3,8,8] x) => (float[N,4,H,W] y) <float[4,3,3,3] w> {{ [c] a = Conv (x, w) {tail} }}"
    _, layers = prepare(model(text))
    assert feeds_rectifier(layers[0]) is expected


def test_an_output_of_the_graph_is_not_only_rectified() -> None:
    text = "graph (float[N,6] x) => (float[N,4] y, float[N,4] a) <float[6,4] w> { [c] a = MatMul (x, w) y = Relu (a) }"
    _, layers = prepare(model(text))
    assert not feeds_rectifier(layers[0])


@pytest.mark.parametrize(("K", "rows"), [(64, 65536), (2304, 73728), (4608, 36864), (12000, 96000)])
def test_rows_sampled(K: int, rows: int) -> None:
    assert sampled_rows(K) == rows
