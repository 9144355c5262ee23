"""The paper's equations 1 to 7 against a transcription with loops."""

from __future__ import annotations

import numpy as np
import pytest

from deftonnx.elimination import correlation, refit
from deftonnx.elimination.problem import Member

Array = np.ndarray


def correlation_by_loops(S: Array) -> Array:
    """Equation 6: covariance(S_i, S_j) / sqrt(var(S_i) var(S_j))."""
    K, N = S.shape
    rho = np.zeros((K, K))
    for i in range(K):
        for j in range(K):
            covariance = sum((S[i, n] - S[i].mean()) * (S[j, n] - S[j].mean()) for n in range(N)) / N
            variances = [sum((S[k, n] - S[k].mean()) ** 2 for n in range(N)) / N for k in (i, j)]
            rho[i, j] = covariance / np.sqrt(variances[0] * variances[1])
    return rho


def search_by_loops(rho: Array, alpha: float) -> list[int]:
    """Equation 7 and the text below it: keep the most representative, discard what it represents, repeat."""
    remaining = list(range(len(rho)))
    kept = []
    while remaining:
        R = {i: sum(1 for j in remaining if rho[i, j] >= alpha) for i in remaining}
        best = max(remaining, key=lambda i: (R[i], -i))
        kept.append(best)
        remaining = [j for j in remaining if j != best and rho[best, j] < alpha]
    return sorted(kept)


def vectors(seed: int, K: int = 14, N: int = 9) -> Array:
    """Synapse vectors, some of them much alike."""
    rng = np.random.default_rng(seed)
    S = rng.normal(size=(K, N))
    for k in range(0, K - 1, 3):
        S[k + 1] = S[k] * rng.uniform(0.5, 2) + 0.2 * rng.normal(size=N)
    return S


@pytest.mark.parametrize("seed", range(6))
def test_equation_6(seed: int) -> None:
    S = vectors(seed)
    np.testing.assert_allclose(correlation.correlation_matrix(S), correlation_by_loops(S), atol=1e-12)


@pytest.mark.parametrize("alpha", [-1.0, -0.2, 0.0, 0.1, 0.3, 0.5, 0.8, 0.95, 1.1])
@pytest.mark.parametrize("seed", range(6))
def test_equation_7_and_the_search(seed: int, alpha: float) -> None:
    rho = correlation.correlation_matrix(vectors(seed))
    assert correlation.representatives(rho, alpha).tolist() == search_by_loops(rho, alpha)


def test_a_threshold_above_one_keeps_everything_and_minus_one_a_single_vector() -> None:
    rho = correlation.correlation_matrix(vectors(0))
    assert len(correlation.representatives(rho, 1.5)) == len(rho)
    assert len(correlation.representatives(rho, -1.0)) == 1


@pytest.mark.parametrize("alpha", [0.2, 0.6, 0.9])
def test_every_discarded_vector_is_represented(alpha: float) -> None:
    rho = correlation.correlation_matrix(vectors(3, K=30))
    kept = correlation.representatives(rho, alpha)
    assert (rho[kept] >= alpha).any(0).all()
    assert 1 < len(kept) < 30


def test_multiples_are_represented_by_the_first_of_them() -> None:
    base = np.random.default_rng(0).normal(size=(3, 8))
    S = np.concatenate([base, 2 * base, base + 1])
    assert correlation.representatives(correlation.correlation_matrix(S), 0.999).tolist() == [0, 1, 2]


def test_constant_vector_represents_itself_only() -> None:
    S = vectors(1)
    S[4] = 0.5
    rho = correlation.correlation_matrix(S)
    assert np.isfinite(rho).all()
    assert 4 in correlation.representatives(rho, 0.3)


@pytest.mark.parametrize("count", [1, 3, 7, 13])
def test_keep_finds_a_threshold_for_a_count(count: int) -> None:
    S = vectors(2)
    kept = correlation.keep([Member(S, np.arange(len(S))[:, None])], count)
    assert 1 <= len(kept) <= count
    assert len(kept) >= count - 2


def test_units_of_several_features_are_compared_as_one_vector() -> None:
    W = vectors(5, K=12, N=7)
    units = np.arange(12).reshape(4, 3)
    expected = search_by_loops(correlation_by_loops(W.reshape(4, 21)), 0.1)
    assert correlation.keep_at([Member(W, units)], 0.1).tolist() == expected


def test_layers_that_share_a_choice_are_compared_across_all_their_outputs() -> None:
    a, b = vectors(6), vectors(7)
    units = np.arange(len(a))[:, None]
    expected = search_by_loops(correlation_by_loops(np.concatenate([a, b], axis=1)), 0.2)
    assert correlation.keep_at([Member(a, units), Member(b, units)], 0.2).tolist() == expected


@pytest.mark.parametrize("D", [1, 5, 11])
def test_equation_5_scales_by_kept_fraction(D: int) -> None:
    rng = np.random.default_rng(D)
    W, In, kept = rng.normal(size=(12, 4)), rng.normal(size=(6, 12)), np.sort(rng.permutation(12)[: 12 - D])
    weight, bias = refit.scale(W, np.ones(4), kept, None)
    expected = np.zeros((6, 4))
    for i in range(6):
        for s in range(4):
            expected[i, s] = 12 / (12 - D) * sum(W[k, s] * In[i, k] for k in kept)
    np.testing.assert_allclose(In[:, kept] @ weight, expected, rtol=1e-6)
    np.testing.assert_array_equal(bias, 1)


def test_no_refit_keeps_the_rows() -> None:
    W = vectors(0)
    weight, bias = refit.none(W, np.arange(9.0), np.array([1, 5]), None)
    np.testing.assert_array_equal(weight, W[[1, 5]])
    np.testing.assert_array_equal(bias, np.arange(9.0))
