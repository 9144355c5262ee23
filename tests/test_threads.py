"""Sessions on the CPU take as many threads as the environment allows."""

import pytest

from deftonnx.sessions import session_options


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("", 0), ("many", 0)])
def test_threads_of_sessions(monkeypatch, value, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert session_options().intra_op_num_threads == threads
