"""Measure everything on this GPU, then write every table and plot of the README and of docs/.

    python benchmarks/everything.py [--parts NAME …] [--limit SECONDS]

Parts run one after the other, each in a process of its own: without --parts all of PARTS in their order. "prepare"
writes the models that "models" measures into a folder that stays, so that they may run in turn from two commands. A
part that takes longer than its share of --limit is stopped; what it had measured counts, and rows that it did not come
to stay as they were, with the commit that they are from. Results go to benchmarks/results/<gpu>/<part>.json as soon as
a part is over. Needs PyTorch with CUDA, torchvision, transformers and ONNX Runtime's CUDA provider.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plots
import tables

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
IDENTITY = (
    "part",
    "model",
    "batch",
    "network",
    "layer",
    "shape",
    "dtype",
    "activation",
    "cuda_graph",
    "density",
    "size",
)
"""What tells the rows of a result file apart; all else in a row is measured."""
LIMIT_FOR_ITSELF = 0.85
"""What a part is told to take of its time, so that it can end what it has begun."""


@dataclass(frozen=True)
class Part:
    """A script with its arguments, its share of the time, and whether it ends by itself when told a limit."""

    script: str
    arguments: tuple[str, ...]
    share: float
    knows_limit: bool = False


PARTS = {
    "prepare": Part("models.py", ("--prepare",), 12),
    "gpu_tests": Part("gpu_tests.py", (), 10, knows_limit=True),
    "models": Part("models.py", ("--prepared",), 9, knows_limit=True),
    "gemm_shapes": Part("gemm_speed.py", ("--part", "shapes"), 2),
    "conv_speed": Part("conv_speed.py", (), 3),
    "gemm_streaming": Part("gemm_speed.py", ("--part", "streaming"), 1),
    "gemm_codes": Part("gemm_speed.py", ("--part", "codes"), 1),
    "gemm_elimination": Part("gemm_speed.py", ("--part", "elimination"), 1),
    "gemm_chains": Part("gemm_speed.py", ("--part", "chains"), 1),
    "gemm_gelu": Part("gemm_speed.py", ("--part", "gelu"), 1),
    "gemm_fp8": Part("gemm_speed.py", ("--part", "fp8"), 1),
    "fission": Part("fission.py", (), 1),
}


def folder() -> Path:
    """Where results of this machine's GPU are kept: results/h200 on an NVIDIA H200."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    name = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return BENCHMARKS / "results" / name.removeprefix("NVIDIA ").lower().replace(" ", "_")


def run(part: Part, output: Path, seconds: float) -> bool:
    """Run a part for so long at most, then stop it with all that it has started; whether it came to its end."""
    command = [sys.executable, str(BENCHMARKS / part.script), *part.arguments, "--output", str(output)]
    if part.knows_limit:
        command += ["--limit", f"{LIMIT_FOR_ITSELF * seconds:.0f}"]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        process.wait(max(0, seconds))
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new` with those rows of `old` that it has no newer ones of; they say which commit they are from."""
    result = dict(new)
    for key, rows in old.items():
        if not isinstance(rows, list) or not isinstance(new.get(key, []), list):
            continue
        measured = {identity(row) for row in new.get(key, [])}
        kept = [{"commit": commit(old), **row} for row in rows if identity(row) not in measured]
        result[key] = [*new.get(key, []), *kept]
    return result


def identity(row: dict[str, Any]) -> str:
    """What a row is about, for comparison."""
    return json.dumps({key: row[key] for key in IDENTITY if key in row}, sort_keys=True)


def commit(content: dict[str, Any]) -> str:
    """The commit that a result file is from."""
    return str(content.get("commit") or content["environment"]["commit"])


def measure(name: str, results: Path, seconds: float) -> None:
    """Run a part for so long at most, and keep what it measured."""
    started = time.monotonic()
    kept = results / f"{name}.json"
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / f"{name}.json"
        complete, measured = run(PARTS[name], output, seconds), output.exists()
        if measured:
            content = json.loads(output.read_text(encoding="utf-8"))
            if kept.exists():
                content = merged(json.loads(kept.read_text(encoding="utf-8")), content)
            results.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    state = ("done" if complete else "stopped") + ("" if measured else ", no results")
    print(f"== {name}: {state} after {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--limit", type=float, default=3600, help="seconds for all parts together")
    options = parser.parse_args()
    results, end = folder(), time.monotonic() + options.limit
    for i, name in enumerate(options.parts):
        waiting = sum(PARTS[other].share for other in options.parts[i:])
        share_ends = time.monotonic() + (end - time.monotonic()) * PARTS[name].share / waiting
        measure(name, results, share_ends - time.monotonic())
    tables.write()
    plots.write()


if __name__ == "__main__":
    main()
