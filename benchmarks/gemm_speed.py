"""DeftGemm against cuBLASLt and ONNX Runtime's own 16-bit operators.

    python benchmarks/gemm_speed.py [--part PART ...] [--output FILE]

Candidates take turns in one process, fifteen rounds; figures are microseconds a layer, median and range.
Needs PyTorch with CUDA and ONNX Runtime's CUDA provider.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import record
import torch  # before onnxruntime: it brings the CUDA libraries into the process

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom_ops")]

import onnxruntime  # noqa: E402
from cublaslt import fastest_graph  # noqa: E402
from families import few_rows, stream, tensor_core  # noqa: E402
from families.few_rows import FewRows  # noqa: E402
from families.stream import Stream  # noqa: E402
from families.tensor_core import Variant  # noqa: E402
from gemm_sessions import (  # noqa: E402
    Layers,
    bound_runner,
    open_session,
    optimised_model,
    packed_model,
    session_runner,
    stock_model,
)
from turns import turns  # noqa: E402

from deftonnx.formats.gemm_function import PACKED  # noqa: E402
from deftonnx.rewrite.joined_layers import WIDEST  # noqa: E402

ROUNDS = 15
SETTLED = 0.03  # seconds of a turn after which what ran before counts little for the clock, where power limits it
MOST_NODES = 256  # in a run
COLD_WEIGHTS = 80 << 20  # more than the L2 cache holds in 8 bits
SHAPES = [
    (1, 4096, 4096), (16, 28672, 8192), (64, 1024, 1024), (128, 4096, 4096), (1024, 1024, 1024),
    (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192), (8192, 3072, 768), (8192, 768, 3072),
    (12608, 3072, 768), (12608, 768, 3072),
]  # fmt: skip
STREAMING = [(8192, 8192), (8192, 28672), (28672, 8192)]  # features of X and of Y
STREAMED_ROWS = (16, 8, 4, 1)
CODES = [
    (64, 1024, 1024), (96, 2048, 2048), (200, 1280, 5120), (500, 768, 768), (33, 4096, 4096), (64, 4096, 4096),
    (128, 4096, 4096), (256, 4096, 4096), (128, 8192, 8192), (256, 8192, 8192), (1024, 1024, 1024), (2048, 2048, 2048),
    (4096, 1024, 4096), (4096, 4096, 4096), (8192, 8192, 8192), (8192, 3072, 768), (8192, 768, 3072),
    (512, 8192, 28672),
]  # fmt: skip
FP8 = [(1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192), (8192, 3072, 768)]
CHAINS = [(16, 256), (64, 1024), (1024, 1024)]
Run = Callable[[], None]
Save = Callable[[list[dict[str, Any]]], None]  # keeps what has been measured so far


def time_together(candidates: dict[str, Run], layers: int, seconds: float = 0.02) -> dict[str, list[float]]:
    """Return for each candidate [median, least, greatest] microseconds a layer; a turn takes that many seconds."""
    repeats = {}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    with on_one_core():
        for name, run in candidates.items():
            _seconds(run, 3)
            least = min(_seconds(run, 3) for _ in range(5))  # one held up would make turns short, and all rounds slow
            repeats[name] = max(3, min(500, int(seconds / least)))
        for name in turns(candidates, ROUNDS):
            samples[name].append(_seconds(candidates[name], repeats[name]) / layers * 1e6)
    return {k: [round(f, 3) for f in (statistics.median(v), min(v), max(v))] for k, v in samples.items()}


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Keep the calling thread on one core: runs as short as their launch would be timed with the scheduler's moves."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _seconds(run: Run, repeats: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def torch_runner(layers: Layers, fused: bool, bare: bool = False) -> Run:
    """A CUDA graph of the layers in PyTorch: cuBLASLt with its fused epilogue, or activation apart, or neither."""
    dtype = getattr(torch, layers.dtype)
    inputs = [torch.randn(layers.M, layers.K, device="cuda", dtype=dtype) for _ in range(layers.repeats)]
    weights = [torch.randn(layers.N, layers.K, device="cuda", dtype=dtype) for _ in range(layers.count)]
    bias = torch.randn(layers.N, device="cuda", dtype=dtype)

    def compute() -> list[torch.Tensor]:
        if bare:
            return [x @ w.T for x in inputs for w in weights]
        if fused:
            gelu = layers.activation == "gelu"
            return [torch._addmm_activation(bias, x, w.T, use_gelu=gelu) for x in inputs for w in weights]
        products = [torch.addmm(bias, x, w.T) for x in inputs for w in weights]
        return [torch.relu_(p) if layers.activation == "relu" else torch.nn.functional.gelu(p) for p in products]

    compute()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = compute()

    def run(keep: object = (inputs, weights, bias, outputs)) -> None:
        graph.replay()

    return run


def cold_layers(M: int, K: int, N: int, **options: Any) -> Layers:
    """Layers side by side, with more weight than the L2 cache holds wherever that is affordable.

    They are repeated until a run takes about a millisecond, so that its cost on the CPU stays hidden.
    """
    count = max(1, min(64, -(-COLD_WEIGHTS // (K * N))))
    floor = floor_us(M, K, N, 1) / 1e6
    repeats = max(1, min(MOST_NODES // count, math.ceil(1e-3 / (count * floor))))
    return Layers(M, K, N, count=count, repeats=repeats, **options)


def floor_us(M: int, K: int, N: int, element_bytes: int) -> float:
    """Microseconds that an H200 needs at least: its tensor cores' 16-bit rate, or weights at its copy rate."""
    return max(2 * M * K * N / 0.99e15, K * N * element_bytes / 4.27e12) * 1e6


def measure_shapes(save: Save) -> list[dict[str, Any]]:
    """Layers with ReLU, every shape: 16-bit types and 8-bit weights."""
    return _measure_shapes(save, "relu", [("float16", "half"), ("float16", "deft8:4"), ("bfloat16", "deft16")])


def measure_gelu(save: Save) -> list[dict[str, Any]]:
    """16-bit layers with GELU, every shape. cuBLASLt's is the one with tanh, ours and ONNX Runtime's the exact one."""
    return _measure_shapes(save, "gelu", [("float16", "half"), ("bfloat16", "deft16")])


def _measure_shapes(save: Save, activation: str, operands: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The best of others is that of the same type; of ONNX Runtime only float16 is measured."""
    rows = []
    for M, K, N in SHAPES:
        candidates: dict[str, Run] = {}
        for dtype, name in operands:
            layers = cold_layers(M, K, N, dtype=dtype, activation=activation)
            candidates[f"deft {name}"] = session_runner(packed_model(layers, name), layers, packed=True, graph=True)
            if f"cublaslt fused {dtype}" in candidates:
                continue
            candidates[f"cublaslt fused {dtype}"] = fastest_graph(layers)
            if dtype == "float16":
                candidates["ort float16"] = session_runner(stock_model(layers), layers, packed=False, graph=True)
        us = time_together(candidates, layers.nodes, SETTLED)
        ratios = {
            f"deft {name}": round(min(v[0] for k, v in us.items() if k.split()[-1] == dtype) / us[f"deft {name}"][0], 3)
            for dtype, name in operands
        }
        row = {"shape": [M, K, N], "layers": layers.nodes, "floor_us": round(floor_us(M, K, N, 2), 2), "us": us}
        rows.append(row | {"best_other_over_deft": ratios})
        _show(rows[-1])
        save(rows)
    return rows


def measure_streaming(save: Save) -> list[dict[str, Any]]:
    """Few rows of X, where reading the weights is what costs: every E, beside a copy in the same run."""
    rows = []
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()  # read and written
    for (K, N), dtype in itertools.product(STREAMING, ("float16", "bfloat16")):
        layers = Layers(0, K, N, dtype=dtype, count=2, repeats=8, any_rows=True)
        models = {f"deft8:{e}": packed_model(layers, f"deft8:{e}") for e in range(1, 8)}
        sessions = {name: open_session(model, packed=True, graph=True) for name, model in models.items()}
        for M in STREAMED_ROWS:
            sized = dataclasses.replace(layers, M=M)
            candidates = {f"deft {name}": bound_runner(session, sized) for name, session in sessions.items()}
            candidates["cublaslt fused bfloat16"] = fastest_graph(dataclasses.replace(sized, dtype="bfloat16"))
            us = time_together(candidates, layers.nodes, 0.005)
            copy = time_together({"copy": lambda: torch.mul(source, 2, out=target)}, 1, 0.005)["copy"]
            share = {f"deft {name}": round(K * N / us[f"deft {name}"][0] * copy[0] / copied, 3) for name in sessions}
            row = {"shape": [M, K, N], "dtype": dtype, "layers": layers.nodes, "us": us, "copy_us": copy}
            rows.append(row | {"copied_bytes": copied, "weight_bytes_per_second_over_copy": share})
            _show(rows[-1])
            save(rows)
    return rows


def measure_codes(save: Save) -> list[dict[str, Any]]:
    """8-bit weights against our own 16-bit path where there are more rows of X than are streamed.

    Also where no unpacked copy of them may be kept ("packed").
    """
    rows = []
    for (M, K, N), dtype in itertools.product(CODES, ("float16", "bfloat16")):
        count = max(1, min(8, COLD_WEIGHTS // (K * N)))
        enough = math.ceil(5e3 / (count * floor_us(M, K, N, 1)))
        layers = Layers(M, K, N, dtype=dtype, count=count, repeats=min(24 // count, enough))
        wide = "half" if dtype == "float16" else "deft16"
        candidates = {
            f"deft {name}": session_runner(packed_model(layers, name), layers, packed=True, graph=True)
            for name in (wide, "deft8:3", "deft8:4", "deft8:5")
        }
        without = packed_model(layers, "deft8:3", PACKED)
        candidates["deft deft8:3 packed"] = session_runner(without, layers, packed=True, graph=True)
        us = time_together(candidates, layers.nodes, 0.01)
        speed = {name: round(us[f"deft {wide}"][0] / times[0], 3) for name, times in us.items() if "deft8" in name}
        rows.append({"shape": [M, K, N], "dtype": dtype, "layers": layers.nodes, "us": us, "speed_over_16_bit": speed})
        _show(rows[-1])
        save(rows)
    return rows


def measure_kernels(save: Save) -> list[dict[str, Any]]:
    """Every dense kernel that takes float16, at every shape: what the tuning tables are made from."""
    major, minor = torch.cuda.get_device_capability()
    kernels: list[Variant | FewRows | Stream] = []
    kernels += [v for v in tensor_core.variants([major * 10 + minor]) if v.x_type == "fp16" and v.loader == "tma"]
    kernels += [k for k in few_rows.kernels([major * 10 + minor]) if k.x_type == "fp16"]
    kernels += [k for k in stream.kernels([major * 10 + minor]) if k.x_type == "fp16"]
    formats = {"fp16": "half", "u8": "deft8:4"}
    rows = []
    for M, K, N in SHAPES:
        if M * K * N > 2**36:
            continue  # nothing new to learn there, and slow
        layers = cold_layers(M, K, N)
        candidates = {}
        for kernel in kernels:
            if not _sensible(kernel, M):
                continue
            model = packed_model(layers, formats[kernel.w_type], kernel.name)
            candidates[kernel.name] = session_runner(model, layers, packed=True, graph=True)
        rows.append({"shape": [M, K, N], "layers": layers.nodes, "us": time_together(candidates, layers.nodes)})
        _show(rows[-1])
        save(rows)
    return rows


def _sensible(kernel: Variant | FewRows | Stream, M: int) -> bool:
    """Whether measuring `kernel` at M rows could tell anything."""
    if isinstance(kernel, FewRows | Stream):
        return kernel.m_tiles // 2 * 8 < M <= 8 * kernel.m_tiles
    return kernel.terms == 1 and 32 * kernel.tile[0] >= M


def measure_chains(save: Save) -> list[dict[str, Any]]:
    """32 layers that feed each other, as they are optimised, in sessions, with and without CUDA graphs.

    Layers too large to be joined stay DeftGemm nodes: these are made here, as optimising large layers takes long.
    """
    rows = []
    for M, K in CHAINS:
        layers = Layers(M, K, K, count=32, chained=True)
        make = optimised_model if K <= WIDEST else packed_model
        models = {name: make(layers, name) for name in ("half", "deft8:4")}
        nodes = {name: len(built.model.graph.node) for name, built in models.items()}
        for graph in (False, True):
            candidates = {
                f"deft {name}": session_runner(built, layers, packed=True, graph=graph)
                for name, built in models.items()
            }
            candidates["ort float16"] = session_runner(stock_model(layers), layers, packed=False, graph=graph)
            us = time_together(candidates, layers.nodes)
            rows.append({"shape": [M, K, K], "cuda_graph": graph, "deft_nodes": nodes, "us": us})
            _show(rows[-1])
            save(rows)
    return rows


def measure_elimination(save: Save) -> list[dict[str, Any]]:
    """Density 0.5 inside the kernel, by size of the kept block."""
    rows = []
    for size in (4096, 8192):
        dense = cold_layers(size, size, size)
        candidates = {"dense": session_runner(packed_model(dense, "half"), dense, packed=True, graph=True)}
        for block in (8, 16, 32, 64):
            half = dataclasses.replace(dense, K=size // 2, kept_block=block, features=size)
            candidates[f"block:{block}"] = session_runner(packed_model(half, "half"), half, packed=True, graph=True)
        rows.append({"shape": [size] * 3, "density": 0.5, "us": time_together(candidates, dense.nodes)})
        _show(rows[-1])
        save(rows)
    return rows


def measure_fp8(save: Save) -> list[dict[str, Any]]:
    """Weights and activations in 8 bits, rounding X included, against cuBLAS in bfloat16 and our own 16-bit kernels."""
    rows = []
    for M, K, N in FP8:
        layers = cold_layers(M, K, N, dtype="bfloat16")
        candidates = {
            f"deft {name}": session_runner(packed_model(layers, name), layers, packed=True, graph=True)
            for name in ("fp8", "deft16")
        }
        candidates["cublaslt fused bfloat16"] = torch_runner(layers, fused=True)
        candidates["cublas bare bfloat16"] = torch_runner(layers, fused=False, bare=True)
        us = time_together(candidates, layers.nodes)
        best = min(us["cublaslt fused bfloat16"][0], us["cublas bare bfloat16"][0])
        rows.append({"shape": [M, K, N], "layers": layers.nodes, "us": us, "gain": round(best / us["deft fp8"][0], 3)})
        _show(rows[-1])
        save(rows)
    return rows


PARTS = {
    "shapes": measure_shapes,
    "gelu": measure_gelu,
    "chains": measure_chains,
    "kernels": measure_kernels,
    "elimination": measure_elimination,
    "streaming": measure_streaming,
    "codes": measure_codes,
    "fp8": measure_fp8,
}


def _show(row: dict[str, Any]) -> None:
    what = [row[key] for key in ("shape", "dtype", "cuda_graph") if key in row]
    print(*what, {name: times[0] for name, times in row["us"].items()}, flush=True)


def environment(commit: str) -> dict[str, str]:
    """What a figure depends on."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "gpu": torch.cuda.get_device_name(),
        "driver": subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip(),
        "onnxruntime": onnxruntime.__version__,
        "torch": str(torch.__version__),
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    """Measure the asked parts and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--output", type=Path, default=Path("gemm_speed.json"))
    parser.add_argument("--commit", help="what was built, where this is no checkout")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "environment": environment(arguments.commit or record.commit()),
        "unit": "microseconds a layer: median, least, greatest",
    }
    for part in arguments.part or PARTS:
        torch.cuda.empty_cache()

        def save(rows: list[dict[str, Any]], part: str = part) -> None:
            result[part] = rows
            if ratios := [row["best_other_over_deft"] for row in rows if "best_other_over_deft" in row]:
                means = {name: round(statistics.geometric_mean(r[name] for r in ratios), 3) for name in ratios[0]}
                result.setdefault("geometric_mean", {})[part] = means
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")

        PARTS[part](save)


if __name__ == "__main__":
    main()
