"""What a session takes before it gives anything: the time to make it, and memory on the GPU."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from deftonnx.runtime import cuda

Session = TypeVar("Session")
ENOUGH_S = 0.1
"""Seconds of making sessions that are enough to know how long one takes."""


@dataclass(frozen=True)
class Footprint:
    """`session_s`: seconds to make the session. `gpu_bytes`: device memory that it holds once it has run, weights,
    activations and scratch; None where there is no GPU."""

    session_s: float
    gpu_bytes: int | None


def footprint(create: Callable[[], Session], run: Callable[[Session], None]) -> tuple[Session, Footprint]:
    """Measure the session that `create` makes and `run` runs at least once; returns it as well.

    The first one does not count: it loads what a process loads once, such as CUDA's libraries. One that is made quickly
    is made again and again, and the median counts. Other programs on the same GPU spoil the memory, other sessions of
    this process do not. To learn what a model needs rather than how an arena grows, let `create` choose
    arena_extend_strategy kSameAsRequested.
    """
    run(create())
    seconds: list[float] = []
    while True:
        gc.collect()
        free = cuda.free_memory()
        started = time.perf_counter()
        session = create()
        seconds.append(time.perf_counter() - started)
        if sum(seconds) >= ENOUGH_S:
            break
        del session
    run(session)
    left = cuda.free_memory()
    memory = None if free is None or left is None else free - left
    return session, Footprint(statistics.median(seconds), memory)
