"""Covering arrays cover, and stay small."""

import itertools

from covering import allowed_pairs, pairwise
from hypothesis import given
from hypothesis import strategies as st

FACTORS = {"a": range(5), "b": range(3), "c": range(4), "d": range(2)}


def covered(rows):
    return {pair for row in rows for pair in itertools.combinations(sorted(row.items()), 2)}


@given(st.integers(0, 1000))
def test_every_pair_occurs(seed):
    rows = pairwise(FACTORS, seed=seed)
    assert covered(rows) == allowed_pairs(FACTORS, lambda row: True)
    assert 20 <= len(rows) <= 30
    assert rows == pairwise(FACTORS, seed=seed)


def test_forbidden_pairs_do_not_occur():
    def allowed(row):
        return (row.get("a"), row.get("b")) != (0, 0)

    rows = pairwise(FACTORS, allowed)
    assert all(allowed(row) for row in rows)
    assert covered(rows) == allowed_pairs(FACTORS, allowed)
