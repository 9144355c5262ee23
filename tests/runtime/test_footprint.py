"""How long sessions take to make: the first one does not count, quick ones are made again, in turn."""

import time

import pytest

from deftonnx.runtime import cuda
from deftonnx.runtime.footprint import ENOUGH_S, Footprint, footprint, repeated


class Sessions:
    """What makes sessions, on a clock of its own."""

    def __init__(self, monkeypatch):
        self.made, self.clock = [], 0.0
        monkeypatch.setattr(cuda, "free_memory", lambda: 1000 - 100 * len(self.made))
        monkeypatch.setattr(time, "perf_counter", lambda: self.clock)

    def create(self, kind, seconds):
        self.clock += seconds
        self.made.append((kind, object()))
        return self.made[-1]

    def kinds(self):
        return "".join(kind for kind, _ in self.made)


def test_first_session_does_not_count(monkeypatch):
    sessions, ran = Sessions(monkeypatch), []
    session, needs = footprint(lambda: sessions.create("a", 0.5 if sessions.made else 7.0), ran.append)
    assert session is sessions.made[-1]
    assert ran == sessions.made
    assert len(ran) == 2
    assert needs == Footprint(pytest.approx(0.5), 100)


def test_quick_sessions_are_made_in_turn_until_that_took_long_enough(monkeypatch):
    sessions = Sessions(monkeypatch)
    seconds = {"a": ENOUGH_S / 4, "b": ENOUGH_S, "c": ENOUGH_S / 2}
    once = [Footprint(1.01 * seconds["a"], 1), Footprint(seconds["b"], 2), Footprint(0.0, None)]
    creates = [lambda kind=kind: sessions.create(kind, 1.01 * seconds[kind]) for kind in seconds]
    needs = repeated(creates, once)
    assert sessions.kinds() == "acaca"
    assert [n.gpu_bytes for n in needs] == [1, 2, None]
    assert needs[0].session_s == pytest.approx(1.01 * seconds["a"])
    assert needs[1] == once[1]
    assert needs[2].session_s == pytest.approx(1.01 * seconds["c"])
