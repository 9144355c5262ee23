"""What an explicit Gather costs on this CPU, in multiply-adds of the product behind it.

    python benchmarks/gather_cost.py benchmarks/results/cpu/gather_cost.json

`deftonnx.selection.GATHER_COST` comes from these figures.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from record import write

MATMULS = [(64, 256, 256), (64, 256, 1024), (256, 768, 768), (1, 800, 500), (197, 768, 3072)]
CONVS = [(64, 32, 64), (256, 14, 256), (16, 32, 16)]
ROUNDS = 9


def session(node: str, inputs: dict[str, np.ndarray], shape: tuple[int, ...], **attrs: object) -> ort.InferenceSession:
    """A CPU session of one node on input x and constants."""
    graph = helper.make_graph(
        [helper.make_node(node, ["x", *inputs], ["y"], **attrs)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, name) for name, value in inputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def seconds(run: ort.InferenceSession, x: np.ndarray) -> float:
    """Median seconds a run over the rounds."""
    run.run(None, {"x": x})
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(20):
            run.run(None, {"x": x})
        rounds.append((time.perf_counter() - start) / 20)
    return statistics.median(rounds)


def main(path: Path) -> None:
    """Measure every case and write the result file."""
    rng = np.random.default_rng(0)
    cases = []
    for M, K, N in MATMULS:
        x, w = rng.standard_normal((M, K), dtype=np.float32), rng.standard_normal((K, N), dtype=np.float32)
        index = np.sort(rng.choice(K, K // 2, replace=False))
        product = seconds(session("MatMul", {"w": w}, x.shape), x) / (M * K * N)
        copy = seconds(session("Gather", {"index": index}, x.shape, axis=1), x) / (M * K // 2)
        cases.append({"case": f"MatMul {M}×{K}×{N}", "kind": "scattered", "cost_in_macs": round(copy / product, 1)})
    for C, size, N in CONVS:
        x = rng.standard_normal((1, C, size, size), dtype=np.float32)
        w = rng.standard_normal((N, C, 3, 3), dtype=np.float32)
        index = np.sort(rng.choice(C, C // 2, replace=False))
        product = seconds(session("Conv", {"w": w}, x.shape, pads=[1] * 4), x) / (N * C * 9 * size**2)
        copy = seconds(session("Gather", {"index": index}, x.shape, axis=1), x) / (C * size**2 // 2)
        name = f"Conv 3×3 {C}→{N} at {size}×{size}"
        cases.append({"case": name, "kind": "planes", "cost_in_macs": round(copy / product, 1)})
    write(path, {"machine": platform.processor() or platform.machine(), "cases": cases})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
