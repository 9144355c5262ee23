"""What an explicit Gather costs on this CPU, in multiply-adds of the product behind it.

    python benchmarks/gather_cost.py benchmarks/results/cpu/gather_cost.json

`deftonnx.selection.GATHER_COST` comes from these figures.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from record import write

MATMULS = [(64, 256, 256), (64, 256, 1024), (256, 768, 768), (1, 800, 500), (197, 768, 3072)]
CONVS = [(16, 32, 16), (32, 16, 32), (64, 8, 64), (64, 32, 64), (128, 28, 128), (256, 14, 256)]
ROUNDS, REPEATS = 9, 20
Run = Callable[[], object]


def session(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple[int, ...]) -> Run:
    """A CPU session of `nodes` from x to y, ready to be timed."""
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    run = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return lambda: run.run(None, {"x": x})


def seconds(runs: list[Run]) -> list[float]:
    """Median seconds of each, taking turns."""
    rounds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(ROUNDS):
        for run, result in zip(runs, rounds, strict=True):
            start = time.perf_counter()
            for _ in range(REPEATS):
                run()
            result.append((time.perf_counter() - start) / REPEATS)
    return [statistics.median(result) for result in rounds]


def matmul_case(M: int, K: int, N: int, rng: np.random.Generator) -> dict[str, object]:
    """A Gather of half the features, in multiply-adds of the dense product."""
    w = rng.standard_normal((K, N), dtype=np.float32)
    index = np.sort(rng.choice(K, K // 2, replace=False))
    product = session([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": w}, (M, K))
    copy = session([helper.make_node("Gather", ["x", "i"], ["y"], axis=1)], {"i": index}, (M, K))
    multiply, gather = seconds([product, copy])
    cost = gather / (M * K // 2) / (multiply / (M * K * N))
    return {"case": f"MatMul {M}×{K}×{N}", "kind": "scattered", "cost_in_macs": round(cost, 1)}


def conv_case(C: int, size: int, N: int, rng: np.random.Generator) -> dict[str, object]:
    """What a Gather of 3/4 of the channels adds between two convolutions (layout changes included), in multiply-adds
    of the second."""
    kept = C * 3 // 4
    v = rng.standard_normal((C, C, 3, 3), dtype=np.float32)
    w = rng.standard_normal((N, C, 3, 3), dtype=np.float32)
    index = np.sort(rng.choice(C, kept, replace=False))
    first = [helper.make_node("Conv", ["x", "v"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"])]
    second = helper.make_node("Conv", ["b", "w"], ["y"], pads=[1] * 4)
    gathered = [
        helper.make_node("Gather", ["b", "i"], ["c"], axis=1),
        helper.make_node("Conv", ["c", "w"], ["y"], pads=[1] * 4),
    ]
    shape = (1, C, size, size)
    start, dense, reduced = seconds(
        [
            session([first[0], helper.make_node("Relu", ["a"], ["y"])], {"v": v}, shape),
            session([*first, second], {"v": v, "w": w}, shape),
            session([*first, *gathered], {"v": v, "w": w[:, index].copy(), "i": index}, shape),
        ]
    )
    per_mac = (dense - start) / (N * C * 9 * size**2)
    saved = (C - kept) * N * 9 * size**2
    cost = ((reduced - dense) / per_mac + saved) / (kept * size**2)
    name = f"Conv 3×3 {C}→{N} at {size}×{size}"
    return {
        "case": name,
        "kind": "planes",
        "cost_in_macs": round(cost, 1),
        "reduced_over_dense": round(reduced / dense, 3),
    }


def main(path: Path) -> None:
    """Measure every case and write the result file."""
    rng = np.random.default_rng(0)
    cases = [matmul_case(*case, rng) for case in MATMULS] + [conv_case(*case, rng) for case in CONVS]
    write(path, {"machine": platform.processor() or platform.machine(), "cases": cases})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
