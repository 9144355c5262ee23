"""Elimination on CuPy gives what NumPy gives, to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import sys
import numpy as np
from deftonnx.calibration.statistics import Moments
from deftonnx import arrays
from deftonnx.elimination import obs, rectified, refit
from deftonnx.elimination.problem import Member

rng = np.random.default_rng(0)
mixing = rng.normal(size=(96, 96)) / 10
X = (rng.normal(size=(4000, 96)) @ mixing).astype(np.float32)
W = rng.normal(size=(96, 24)).astype(np.float32)
Y = X @ W + rng.normal(size=24).astype(np.float32)
moments = Moments()
for start in range(0, len(X), 1000):
    moments.add(X[start : start + 1000], Y[start : start + 1000])
result = {"module": arrays.array_module().__name__}
for size in (1, 8):
    units = np.arange(96).reshape(-1, size)
    kept = obs.keep([Member(W, units, moments, np.tril(rng.normal(size=(24, 24))) + np.eye(24) * 5)], 48 // size)
    features = units[kept].reshape(-1)
    w, b = refit.least_squares(W, np.zeros(24), features, moments)
    better, bias, error = rectified.refine(w, b, W, features, moments, lambda: iter([(X[:, features], Y)]))
    result |= {f"kept{size}": kept, f"w{size}": w, f"b{size}": b, f"better{size}": better, f"bias{size}": bias}
    result[f"error{size}"] = [error, refit.residual(w, b, features, moments)]
np.savez(sys.argv[1], **result)
"""


def _run(path: Path, **environment: str) -> dict[str, np.ndarray]:
    subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=True, env={**os.environ, **environment})
    return dict(np.load(path))


def test_cupy_gives_what_numpy_gives(tmp_path: Path) -> None:
    pytest.importorskip("cupy")
    on_gpu = _run(tmp_path / "cupy.npz")
    on_cpu = _run(tmp_path / "numpy.npz", CUDA_VISIBLE_DEVICES="")
    assert (str(on_gpu.pop("module")), str(on_cpu.pop("module"))) == ("cupy", "numpy")
    for name, want in on_cpu.items():
        if name.startswith("kept"):
            assert on_gpu[name].tolist() == want.tolist()
        else:
            assert np.linalg.norm(on_gpu[name] - want) <= 1e-4 * np.linalg.norm(want)
