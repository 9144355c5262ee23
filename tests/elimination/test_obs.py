"""Optimal brain surgeon: its scores are the growth that a fresh solution shows, and its choices are sane."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from deftonnx.calibration.statistics import Moments
from deftonnx.elimination import magnitude, obs, refit
from deftonnx.elimination.obs import _State
from deftonnx.elimination.problem import Member, ridge_system

Array = np.ndarray


def problem(seed: int, K: int = 12, N: int = 4, size: int = 1, rows: int = 300) -> Member:
    """Correlated inputs, outputs of a linear layer with noise, and units of `size` features."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, K)) @ (np.eye(K) + 0.4 * rng.normal(size=(K, K))) + rng.normal(size=K)
    W = rng.normal(size=(K, N)) * rng.uniform(0.2, 2, size=(K, 1))
    moments = Moments()
    moments.add(X.astype(np.float32), (X @ W + 0.1 * rng.normal(size=(rows, N))).astype(np.float32))
    return Member(W, np.arange(K).reshape(-1, size), moments)


def objective(H: Array, G: Array, features: Array) -> float:
    """The ridge objective's least value over weights on `features`, up to a constant: −tr(GᵀH⁻¹G)."""
    return -float(np.trace(G[features].T @ np.linalg.solve(H[np.ix_(features, features)], G[features])))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_the_growth_of_the_objective(seed: int, size: int) -> None:
    member = problem(seed, size=size)
    H, G = ridge_system(member.moments, member.weight)
    everything = np.arange(12)
    energy = member.moments.energy().sum()
    expected = [
        (objective(H, G, np.setdiff1d(everything, unit)) - objective(H, G, everything)) / energy
        for unit in member.units
    ]
    np.testing.assert_allclose(_State(member).scores(), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_scores_after_removals_are_those_of_what_is_left(size: int) -> None:
    member = problem(7, size=size)
    H, G = ridge_system(member.moments, member.weight)
    state = _State(member)
    state.remove(np.array([1, 2]))
    state.remove(np.array([0]))
    left = np.delete(member.units, [0, 1, 2], axis=0)
    features = left.reshape(-1)
    energy = member.moments.energy().sum()
    expected = [(objective(H, G, np.setdiff1d(features, unit)) - objective(H, G, features)) / energy for unit in left]
    np.testing.assert_allclose(state.scores(), expected, rtol=1e-6)
    np.testing.assert_allclose(state.weight, np.linalg.solve(H[np.ix_(features, features)], G[features]), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_first_to_go_is_the_best_single_removal(seed: int) -> None:
    member = problem(seed)
    H, G = ridge_system(member.moments, member.weight)
    growth = [objective(H, G, np.delete(np.arange(12), k)) for k in range(12)]
    assert np.setdiff1d(np.arange(12), obs.keep([member], 11)).tolist() == [int(np.argmin(growth))]


@pytest.mark.parametrize("seed", range(5))
def test_choice_is_close_to_the_best_of_all(seed: int) -> None:
    member = problem(seed, K=8)
    H, G = ridge_system(member.moments, member.weight)
    all_growths = [objective(H, G, np.array(c)) for c in itertools.combinations(range(8), 4)]
    got = objective(H, G, obs.keep([member], 4))
    assert got <= np.quantile(all_growths, 0.1)


@pytest.mark.parametrize("criterion", [obs, magnitude])
@pytest.mark.parametrize("count", [1, 3, 6, 11])
def test_keeps_as_many_as_asked_in_order(criterion: object, count: int) -> None:
    kept = criterion.keep([problem(0)], count)  # type: ignore[attr-defined]
    assert len(kept) == count
    assert (np.diff(kept) > 0).all()


@pytest.mark.parametrize("size", [1, 2])
def test_loss_grows_as_more_goes(size: int) -> None:
    member = problem(3, K=24, size=size)
    H, G = ridge_system(member.moments, member.weight)
    units = len(member.units)
    losses = [objective(H, G, member.units[obs.keep([member], n)].reshape(-1)) for n in range(units, 0, -1)]
    assert (np.diff(losses) >= -1e-9).all()


def test_dead_inputs_go_first() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 10)).astype(np.float32)
    X[:, [2, 5, 9]] = 0.75
    W = rng.normal(size=(10, 3)) * 0.1
    W[[2, 5, 9]] = 10
    moments = Moments()
    moments.add(X, (X @ W).astype(np.float32))
    kept = obs.keep([Member(W, np.arange(10)[:, None], moments)], 7)
    assert kept.tolist() == [0, 1, 3, 4, 6, 7, 8]


def test_copies_lose_all_but_one() -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(300, 6)).astype(np.float32)
    X[:, 3:] = X[:, :3]
    W = rng.normal(size=(6, 3))
    moments = Moments()
    moments.add(X, (X @ W).astype(np.float32))
    kept = obs.keep([Member(W, np.arange(6)[:, None], moments)], 3)
    assert sorted(kept % 3) == [0, 1, 2]


def test_layers_that_share_a_choice_weigh_alike() -> None:
    """One member alone would drop 0, the other 1; both together drop what neither needs."""
    X = np.random.default_rng(2).normal(size=(400, 3)).astype(np.float32)
    members = []
    for weight in ([[0.0], [1.0], [0.3]], [[100.0], [0.0], [30.0]]):
        moments = Moments()
        moments.add(X, (X @ np.array(weight)).astype(np.float32))
        members.append(Member(np.array(weight), np.arange(3)[:, None], moments))
    assert obs.keep(members, 2).tolist() == [0, 1]


def test_least_squares_is_numpys_with_the_ridge_as_extra_rows() -> None:
    rng = np.random.default_rng(3)
    X, kept = rng.normal(size=(150, 8)).astype(np.float32) + 1, np.array([0, 2, 3, 7])
    W0, b0 = rng.normal(size=(8, 3)), rng.normal(size=3)
    Y = (X @ W0 + b0).astype(np.float32)
    moments = Moments()
    moments.add(X, Y)
    H, _ = ridge_system(moments, W0)
    ridge = (H - moments.gram())[0, 0]
    Z, T = X - X.mean(0, dtype=np.float64), Y - Y.mean(0, dtype=np.float64)
    # minimise ‖Z·W − T‖²/n + λ‖W − W₀‖²
    rows = np.concatenate([Z[:, kept] / np.sqrt(150), np.sqrt(ridge) * np.eye(4)])
    targets = np.concatenate([T / np.sqrt(150), np.sqrt(ridge) * W0[kept]])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0]
    weight, bias = refit.least_squares(W0, b0, kept, moments)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    np.testing.assert_allclose(bias, Y.mean(0) - X.mean(0)[kept] @ expected, rtol=1e-4)


def test_least_squares_with_everything_kept_is_the_original() -> None:
    rng = np.random.default_rng(4)
    X, W0, b0 = rng.normal(size=(100, 5)).astype(np.float32), rng.normal(size=(5, 3)), rng.normal(size=3)
    moments = Moments()
    moments.add(X, (X @ W0 + b0).astype(np.float32))
    weight, bias = refit.least_squares(W0, b0, np.arange(5), moments)
    np.testing.assert_allclose(weight, W0, rtol=1e-4)
    np.testing.assert_allclose(bias, b0, rtol=1e-4)


def test_residual_is_the_mean_square_error() -> None:
    rng = np.random.default_rng(5)
    X, Y = rng.normal(size=(80, 6)).astype(np.float32), rng.normal(size=(80, 2)).astype(np.float32)
    W, b, kept = rng.normal(size=(3, 2)), rng.normal(size=2), np.array([1, 2, 4])
    moments = Moments()
    moments.add(X, Y)
    error = refit.residual(W, b, kept, moments)
    assert error == pytest.approx(float(np.square(X[:, kept] @ W + b - Y).sum(1).mean()), rel=1e-5)


def test_magnitude_keeps_the_largest_rows() -> None:
    W = np.array([[1.0, 0], [0, 3], [2, 2], [0.1, 0.1]])
    assert magnitude.keep([Member(W, np.arange(4)[:, None])], 2).tolist() == [1, 2]


def test_smaller_densities_keep_part_of_what_larger_ones_keep() -> None:
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(600, 400)) @ rng.normal(size=(400, 400))).astype(np.float32)
    W = rng.normal(size=(400, 5))
    moments = Moments()
    moments.add(X, (X @ W).astype(np.float32))
    member = Member(W, np.arange(400).reshape(200, 2), moments)
    kept = [set(obs.keep([member], count).tolist()) for count in (150, 101, 100, 37)]
    assert all(smaller < larger for larger, smaller in itertools.pairwise(kept))
