"""A model and data on disk, and the command line in this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from deftonnx.cli.main import main
from small_files import SAMPLES, inputs, small_model

from deftonnx import evaluation


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, holding model.onnx and data.npz (with labels)."""
    monkeypatch.chdir(tmp_path)
    onnx.save(small_model(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=inputs(), labels=np.arange(SAMPLES) % 4)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command line without the time that measuring latency takes."""
    monkeypatch.setattr(evaluation, "latencies", lambda models, feed: [[1.0] for _ in models])

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return invoke
