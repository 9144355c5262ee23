"""Covering arrays of strength two: few rows in which every pair of values of every two factors occurs."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

Row = dict[str, object]


def _pairs(row: Row) -> set[tuple[object, ...]]:
    """The pairs of (factor, value) in `row`."""
    return set(itertools.combinations(sorted(row.items(), key=lambda item: item[0]), 2))


def allowed_pairs(factors: Mapping[str, Sequence], allowed: Callable[[Row], bool]) -> set[tuple[object, ...]]:
    """Every pair of values that `allowed` lets occur together; it sees rows with only some of the factors."""
    found = set()
    for a, b in itertools.combinations(sorted(factors), 2):
        for row in ({a: x, b: y} for x in factors[a] for y in factors[b]):
            if allowed(row):
                found |= _pairs(row)
    return found


def pairwise(
    factors: Mapping[str, Sequence], allowed: Callable[[Row], bool] = lambda row: True, seed: int = 0
) -> list[Row]:
    """Return rows that cover all allowed pairs: greedily, starting each from a pair that is not covered yet.

    `allowed` must judge pairs: if every pair of a row is allowed, so is the row.
    """
    rng = random.Random(seed)
    left = sorted(allowed_pairs(factors, allowed), key=repr)
    rng.shuffle(left)
    open_pairs = dict.fromkeys(left)
    rows = []
    while open_pairs:
        row: Row = dict(next(iter(open_pairs)))
        others = [name for name in factors if name not in row]
        rng.shuffle(others)
        for name in others:
            values = [v for v in factors[name] if allowed({**row, name: v})]
            rng.shuffle(values)
            row[name] = max(values, key=lambda v: sum(p in open_pairs for p in _pairs({**row, name: v})))
        for pair in _pairs(row):
            open_pairs.pop(pair, None)
        rows.append(row)
    return rows
