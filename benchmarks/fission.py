"""Near-compute data fission on the FP32 units: what figures 11 and 12 of the paper compare, on this GPU.

    python benchmarks/fission.py [--output FILE]

Every candidate is the same kernel (custom_ops/kernels/gemm_simt.cu, float32 multiply-add out of shared memory)
with other formats in shared memory: of weights and activations as in the paper, and of weights alone. Times
alternate in one process; counters come from Nsight Compute (ncu) in processes of their own.
Needs PyTorch with CUDA, ONNX Runtime's CUDA provider and, for the counters, ncu.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gemm_speed
import record
import torch
from gemm_sessions import Layers, packed_model, session_runner

SIZES = (1024, 2048, 4096)
PROFILED_SIZE = 2048
# the paper's name → X's type and the weights' format
CANDIDATES = {
    "no fission": ("float32", "fp32"),
    "IEEE": ("float16", "half"),
    "Deft-16": ("bfloat16", "deft16"),
    "Deft-16Q": ("bfloat16", "deft16q"),
    "Deft-8 in software": ("bfloat16", "deft8:4"),
    "IEEE, weights alone": ("float32", "half"),
    "Deft-16, weights alone": ("float32", "deft16"),
    "Deft-16Q, weights alone": ("float32", "deft16q"),
    "Deft-8 in software, weights alone": ("float32", "deft8:4"),
}
METRICS = {
    "us": ("gpu__time_duration.sum", 1e-3),
    "shared_load_wavefronts": ("l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum", 1),
    "shared_load_percent_of_peak": (
        "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
        1,
    ),
    "fp32_instructions": ("smsp__inst_executed_pipe_fma.sum", 1),
    "integer_instructions": ("smsp__inst_executed_pipe_alu.sum", 1),
    "instructions": ("smsp__inst_executed.sum", 1),
    "issue_slots_percent": ("smsp__issue_active.avg.pct_of_peak_sustained_active", 1),
}


def runner(candidate: str, size: int) -> gemm_speed.Run:
    """A session of one square layer."""
    dtype, packing = CANDIDATES[candidate]
    layers = Layers(size, size, size, dtype=dtype)
    return session_runner(packed_model(layers, packing, "simt"), layers, packed=True, graph=False)


def measure() -> list[dict[str, Any]]:
    """Times and the rate they mean, for every size."""
    rows = []
    for size in SIZES:
        us = gemm_speed.time_together({name: runner(name, size) for name in CANDIDATES}, 1)
        base = us["no fission"][0]
        rates = {name: round(2 * size**3 / times[0] / 1e6, 1) for name, times in us.items()}
        speedup = {name: round(base / times[0], 3) for name, times in us.items()}
        rows.append({"size": size, "us": us, "tflops": rates, "speedup": speedup})
        print(size, rates, flush=True)
    return rows


def profile() -> dict[str, dict[str, float]]:
    """Counters of one run of each candidate; empty without ncu."""
    if shutil.which("ncu") is None:
        return {}
    metrics = ",".join(metric for metric, _ in METRICS.values())
    options = ["--csv", "--clock-control", "none", "--print-units", "base", "--kernel-name", "regex:.*_8$"]
    command = ["ncu", *options, "--metrics", metrics, sys.executable, __file__, "--run-once"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    runs: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(io.StringIO(output[output.index('"ID"') :])):
        runs.setdefault(row["ID"], {})[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
    return {name: _counters(values) for name, values in zip(CANDIDATES, runs.values(), strict=True)}


def _counters(values: dict[str, float]) -> dict[str, float]:
    counters = {name: round(values[metric] * factor, 3) for name, (metric, factor) in METRICS.items()}
    loaded = counters["shared_load_wavefronts"] * 128
    return counters | {"shared_load_bytes_per_multiply_add": round(loaded / PROFILED_SIZE**3, 4)}


def main() -> None:
    """Measure, profile, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("fission.json"))
    parser.add_argument("--commit", help="what was built, where this is no checkout")
    parser.add_argument("--run-once", action="store_true", help="only run every candidate, for the profiler")
    arguments = parser.parse_args()
    if arguments.run_once:
        for name in CANDIDATES:
            runner(name, PROFILED_SIZE)()
        torch.cuda.synchronize()
        return
    result = {
        "environment": gemm_speed.environment(arguments.commit or record.commit()),
        "unit": "microseconds: median, least, greatest; square layers with ReLU",
        "fission": measure(),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    result |= {"profiled_size": PROFILED_SIZE, "counters": profile()}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
