"""Errors of a layer's outputs, weighed as the layers behind it see them."""

from __future__ import annotations

import numpy as np
from models import model, prepare

from deftonnx.elimination.readout import FLOOR, metric_factor
from deftonnx.rewrite.absorb import readers


def factor(text: str) -> tuple[np.ndarray, dict]:
    """The metric L·Lᵀ of the layer called 'first', and all layers by name."""
    graph, layers = prepare(model(text))
    by_name = {layer.name: layer for layer in layers}
    found = metric_factor(by_name["first"], readers(graph, layers).get("first", []))
    return (None if found is None else found[0] @ found[0].T), by_name


def close(got: np.ndarray, want: np.ndarray) -> None:
    floor = FLOOR * np.trace(want) / len(want)
    np.testing.assert_allclose(got, want + floor * np.eye(len(want)), rtol=1e-5, atol=1e-6)


def test_one_reader_behind_an_activation() -> None:
    got, layers = factor(
        "graph (float[N,6] x) => (float[N,3] y) <float[6,5] w, float[5,3] v>"
        " { [first] a = MatMul (x, w) b = Relu (a) [last] y = MatMul (b, v) }"
    )
    P = layers["last"].weight()[0].astype(np.float64)
    close(got, P @ P.T)


def test_readers_add_up() -> None:
    got, layers = factor(
        "graph (float[N,6] x) => (float[N,3] y, float[N,2] z) <float[6,5] w, float[5,3] v, float[5,2] u>"
        " { [first] a = MatMul (x, w) [p] y = MatMul (a, v) [q] z = MatMul (a, u) }"
    )
    parts = [layers[name].weight()[0].astype(np.float64) for name in ("p", "q")]
    close(got, sum(P @ P.T for P in parts))


def test_pixels_behind_a_flatten_are_columns() -> None:
    got, layers = factor(
        "graph (float[N,3,4,4] x) => (float[N,2] y) <float[5,3,3,3] w, float[20,2] v>"
        " { [first] a = Conv (x, w) b = Flatten (a) [last] y = MatMul (b, v) }"
    )
    P = layers["last"].weight()[0].astype(np.float64).reshape(5, 4 * 2)
    close(got, P @ P.T)


def test_taps_of_a_convolution_are_columns() -> None:
    got, layers = factor(
        "graph (float[N,3,8,8] x) => (float[N,4,H,W] y) <float[5,3,3,3] w, float[4,5,3,3] v>"
        " { [first] a = Conv (x, w) b = Relu (a) [last] y = Conv (b, v) }"
    )
    P = layers["last"].node.inputs[1].values.astype(np.float64).transpose(1, 0, 2, 3).reshape(5, -1)
    close(got, P @ P.T)


def test_outputs_that_something_else_reads_have_no_metric() -> None:
    got, _ = factor(
        "graph (float[N,6] x) => (float[N,3] y, float[N,5] s) <float[6,5] w, float[5,3] v>"
        " { [first] a = MatMul (x, w) s = Softmax (a) [last] y = MatMul (a, v) }"
    )
    assert got is None


def test_a_smooth_activation_in_between_gives_no_metric() -> None:
    got, _ = factor(
        "graph (float[N,6] x) => (float[N,3] y) <float[6,5] w, float[5,3] v>"
        " { [first] a = MatMul (x, w) b = Erf (a) [last] y = MatMul (b, v) }"
    )
    assert got is None
