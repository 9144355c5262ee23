"""The order in which candidates that are measured in one process take turns."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator


def turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Yield every name once a round, in an order that is another one, but in every run the same, for each round.

    Where the power limit binds, the clock depends on what ran before: no candidate is to be always behind the same.
    """
    names = list(names)
    for i in range(rounds):
        yield from random.Random(i).sample(names, len(names))
