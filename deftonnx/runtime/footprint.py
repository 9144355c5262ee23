"""What a session takes before it gives anything: the time to make it, and memory on the GPU."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from deftonnx.runtime import cuda

Session = TypeVar("Session")
ENOUGH_S = 0.2
"""Seconds of making sessions that are enough to know how long one takes."""


@dataclass(frozen=True)
class Footprint:
    """`session_s`: seconds to make the session. `gpu_bytes`: device memory that it holds once it has run, weights,
    activations and scratch; None where there is no GPU."""

    session_s: float
    gpu_bytes: int | None


def footprint(create: Callable[[], Session], run: Callable[[Session], None]) -> tuple[Session, Footprint]:
    """Measure the session that `create` makes and `run` runs at least once; returns it as well.

    The first one does not count: it loads what a process loads once, such as CUDA's libraries. Other programs on the
    same GPU spoil the memory, other sessions of this process do not. To learn what a model needs rather than how an
    arena grows, let `create` choose arena_extend_strategy kSameAsRequested. Sessions that are made quickly are to be
    made again, by `repeated`.
    """
    run(create())
    gc.collect()
    free = cuda.free_memory()
    session, seconds = _timed(create)
    run(session)
    left = cuda.free_memory()
    memory = None if free is None or left is None else free - left
    return session, Footprint(seconds, memory)


def repeated(creates: Sequence[Callable[[], object]], once: Sequence[Footprint]) -> list[Footprint]:
    """`once`, the footprints of the sessions that `creates` make, with the median seconds of several of each.

    They are made in turn, so that what slows the machine down for a while does so for all, until each kind has taken
    ENOUGH_S.
    """
    seconds = [[needs.session_s] for needs in once]
    while quick := [i for i, taken in enumerate(seconds) if sum(taken) < ENOUGH_S]:
        for i in quick:
            gc.collect()
            seconds[i].append(_timed(creates[i])[1])
    return [replace(needs, session_s=statistics.median(taken)) for needs, taken in zip(once, seconds, strict=True)]


def _timed(create: Callable[[], Session]) -> tuple[Session, float]:
    started = time.perf_counter()
    session = create()
    return session, time.perf_counter() - started
