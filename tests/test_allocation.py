"""Freed memory is kept where the C library can, and an optimisation takes little more than the model."""

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

LAYERS, WIDTH = 8, 2048
MOST = 3
"""Times the size of the model that the process may grow by: its weights, rounded and packed ones, and a run's."""
CODE = """
import re, sys
import deftonnx, deftonnx.optimize
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
was = peak()
deftonnx.optimize(sys.argv[1], preset="dense16", decide_by="nothing").save(sys.argv[2])
print(peak() - was)
"""


def test_freed_memory_is_kept() -> None:
    code = "from deftonnx.allocation import keep_freed_memory; print(keep_freed_memory())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(platform.libc_ver()[0] == "glibc")


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_peak_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for i in range(LAYERS):
        weights.append(numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH), np.float32) / WIDTH**0.5, f"W{i}"))
        nodes.append(helper.make_node("MatMul", [x, f"W{i}"], [f"y{i}"]))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [x := f"x{i}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    command = [sys.executable, "-c", CODE, str(tmp_path / "model.onnx"), str(tmp_path / "small.onnx")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) << 10
    assert grown < MOST * (tmp_path / "model.onnx").stat().st_size
