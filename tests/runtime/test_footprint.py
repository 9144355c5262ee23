"""How long sessions take to make: the first one does not count, quick ones are made again and again."""

import time

import pytest

from deftonnx.runtime import cuda
from deftonnx.runtime.footprint import ENOUGH_S, footprint


@pytest.mark.parametrize(("parts", "made"), [(1, 2), (2, 3), (4, 5)])
def test_sessions_are_made_until_that_took_long_enough(monkeypatch, parts, made):
    sessions, clock = [], [0.0]
    monkeypatch.setattr(cuda, "free_memory", lambda: 1000 - 100 * len(sessions))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def create():
        clock[0] += 1.01 * ENOUGH_S / parts if sessions else 7.0
        sessions.append(object())
        return sessions[-1]

    session, needs = footprint(create, lambda session: None)
    assert session is sessions[-1]
    assert len(sessions) == made
    assert needs.session_s == pytest.approx(1.01 * ENOUGH_S / parts)
    assert needs.gpu_bytes == 100
