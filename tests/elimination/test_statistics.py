"""Streamed moments equal those of all rows at once; granularities fit the layers they are given."""

from __future__ import annotations

import numpy as np
import pytest

from deftonnx.calibration.statistics import Moments
from deftonnx.elimination.choice import kept_count
from deftonnx.elimination.groups import Granularity
from deftonnx.errors import UsageError


def rows(offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated X (500, 7) and Y (500, 3), float32."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 7)) @ rng.normal(size=(7, 7)) + offset
    return X.astype(np.float32), (X @ rng.normal(size=(7, 3)) + rng.normal(size=(500, 3))).astype(np.float32)


def streamed(X: np.ndarray, Y: np.ndarray, cuts: list[int], order: list[int] | None = None) -> Moments:
    """The moments of X and Y in batches."""
    batches = list(zip(np.split(X, cuts), np.split(Y, cuts), strict=True))
    moments = Moments()
    for i in order or range(len(batches)):
        moments.add(*batches[i])
    return moments


@pytest.mark.parametrize("cuts", [[], [1], [100, 101, 350], list(range(50, 500, 50)), [0, 250, 250]])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_streamed_moments_are_those_of_two_passes(cuts: list[int], offset: float) -> None:
    X, Y = rows(offset)
    moments = streamed(X, Y, cuts)
    Z, T = X - X.mean(0, dtype=np.float64), Y - Y.mean(0, dtype=np.float64)
    scale = np.abs(Z.T @ Z / 500).max()
    np.testing.assert_allclose(moments.gram(), Z.T @ Z / 500, atol=1e-4 * scale)
    np.testing.assert_allclose(moments.cross(), Z.T @ T / 500, atol=1e-4 * np.abs(Z.T @ T / 500).max())
    np.testing.assert_allclose(moments.energy(), np.square(T).mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.mean_x, X.mean(0, dtype=np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moments.mean_y, Y.mean(0, dtype=np.float64), rtol=1e-5, atol=1e-5)
    assert moments.count == 500


def test_order_of_batches_does_not_matter() -> None:
    X, Y = rows(3.0)
    cuts = [100, 250, 260, 400]
    a, b = streamed(X, Y, cuts), streamed(X, Y, cuts, order=[3, 1, 4, 0, 2])
    np.testing.assert_allclose(a.gram(), b.gram(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(a.cross(), b.cross(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "taps", "channels", "fits"),
    [
        ("element", 9, 3, "element"),
        ("channel", 9, 3, "channel"),
        ("vector", 9, 24, "vector"),
        ("vector", 9, 12, "element"),
        ("block:32", 9, 64, "block:32"),
        ("block:32", 9, 48, "block:16"),
        ("block:64", 9, 96, "block:32"),
        ("block:64", 9, 40, "vector"),
        ("block:16", 9, 3, "element"),
        ("block:16", 1, 8, "vector"),
    ],
)
def test_granularity_that_fits(name: str, taps: int, channels: int, fits: str) -> None:
    assert Granularity.parse(name).fit(taps, channels).name == fits


@pytest.mark.parametrize("name", ["element", "vector", "block", "block:64", "channel"])
@pytest.mark.parametrize(("taps", "channels"), [(1, 64), (9, 64), (4, 128)])
def test_units_are_every_feature_once(name: str, taps: int, channels: int) -> None:
    granularity = Granularity.parse(name)
    units = granularity.groups(taps, channels)
    assert sorted(units.reshape(-1)) == list(range(taps * channels))
    if name == "channel":
        assert units.shape == (channels, taps)
        assert (units % channels == np.arange(channels)[:, None]).all()
    else:
        assert units.shape[1] == granularity.width
        assert (np.diff(units, axis=1) == 1).all()
        assert (units // channels == units[:, :1] // channels).all()


@pytest.mark.parametrize("name", ["", "blocks", "block:8", "block:65", "channel:x", "vector:8", "Element"])
def test_unknown_granularity(name: str) -> None:
    with pytest.raises(UsageError, match="granularity"):
        Granularity.parse(name)


def test_the_granularities_there_are() -> None:
    with pytest.raises(UsageError, match=r"'fast' is not one of auto, fastest, channel, channel:P, .*, head, head:D$"):
        Granularity.parse("fast")


@pytest.mark.parametrize("name", ["channel:0", "head:0"])
def test_units_of_no_features(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' has units of no features"):
        Granularity.parse(name)


@pytest.mark.parametrize(
    ("density", "units", "count"), [(0.5, 8, 4), (0.5, 5, 2), (0.75, 9, 7), (0.01, 8, 1), (1.0, 7, 7)]
)
def test_kept_count(density: float, units: int, count: int) -> None:
    assert kept_count(density, units) == count
