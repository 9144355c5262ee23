"""Measure everything on this GPU, then write every table and plot of the README and of docs/.

    python benchmarks/everything.py [--parts NAME …] [--limit SECONDS] [--data FOLDER]

Every part runs in a process of its own: first those that time nothing, side by side, then the others one after the
other. "prepare" writes the models that "models" measures into a folder that stays, so that they may run in turn from
two commands. A part that takes longer than its share of --limit is stopped; what it had measured counts, and rows that
it did not come to stay as they were, with the commit that they are from. Results go to
benchmarks/results/<gpu>/<part>.json as soon as a part is over. Needs PyTorch with CUDA, torchvision, transformers and
ONNX Runtime's CUDA provider; with --data, the trained models and data that accuracy.py describes, what elimination and
formats cost in accuracy is measured too (on the CPU, into results/cpu), and the GPU tests take these models.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
    "granularity",
    "format",
    "size",
)
"""What tells the rows of a result file apart; all else in a row is measured."""
LIMIT_FOR_ITSELF = 0.85
"""What a part is told to take of its time, so that it can end what it has begun."""


@dataclass(frozen=True)
class Part:
    """A script with its arguments."""

    script: str
    arguments: tuple[str, ...]
    share: float
    """Of the time, in seconds that it needs on an H200 beside 16 cores."""
    knows_limit: bool = False
    """Whether it ends by itself when told a limit."""
    timed: bool = True
    """Whether it measures times, for which it has the machine to itself."""
    needs_data: bool = False


PARTS = {
    "prepare": Part("models.py", ("--prepare",), 190, timed=False),
    "gpu_tests": Part("gpu_tests.py", (), 240, knows_limit=True, timed=False),
    "accuracy": Part("accuracy.py", (), 190, timed=False, needs_data=True),
    "format_accuracy": Part("format_accuracy.py", (), 190, timed=False, needs_data=True),
    "gemm_shapes": Part("gemm_speed.py", ("--part", "shapes"), 80),
    "gemm_gelu": Part("gemm_speed.py", ("--part", "gelu"), 50),
    "gemm_codes": Part("gemm_speed.py", ("--part", "codes"), 85),
    "models": Part("models.py", ("--prepared",), 170, knows_limit=True),
    "conv_speed": Part("conv_speed.py", (), 90),
    "gemm_streaming": Part("gemm_speed.py", ("--part", "streaming"), 75),
    "gemm_elimination": Part("gemm_speed.py", ("--part", "elimination"), 25),
    "gemm_chains": Part("gemm_speed.py", ("--part", "chains"), 25),
    "gemm_fp8": Part("gemm_speed.py", ("--part", "fp8"), 25),
    "fission": Part("fission.py", (), 30),
}


def folder() -> Path:
    """Where results of this machine's GPU are kept: results/h200 on an NVIDIA H200."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    name = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return BENCHMARKS / "results" / name.removeprefix("NVIDIA ").lower().replace(" ", "_")


def run(part: Part, output: Path, seconds: float, data: Path | None) -> bool:
    """Run a part for so long at most, then stop it with all that it has started; whether it came to its end."""
    result = [str(data), str(output)] if part.needs_data else ["--output", str(output)]
    command = [sys.executable, str(BENCHMARKS / part.script), *part.arguments, *result]
    if part.knows_limit:
        command += ["--limit", f"{LIMIT_FOR_ITSELF * seconds:.0f}"]
    environment = os.environ if data is None else os.environ | {"DEFTONNX_SHARED": str(data)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
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
        if not _holds_rows(rows) or not _holds_rows(new.get(key, [])):
            continue
        measured = {identity(row) for row in new.get(key, [])}
        kept = [{"commit": commit(old), **row} for row in rows if identity(row) not in measured]
        result[key] = [*new.get(key, []), *kept]
    return result


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def identity(row: dict[str, Any]) -> str:
    """What a row is about, for comparison."""
    return json.dumps({key: row[key] for key in IDENTITY if key in row}, sort_keys=True)


def circumstances(content: dict[str, Any]) -> dict[str, Any]:
    """The part of a result file that says when, from what and how it was measured."""
    found: dict[str, Any] = content if "commit" in content else content["environment"]
    return found


def commit(content: dict[str, Any]) -> str:
    """The commit that a result file is from."""
    return str(circumstances(content)["commit"])


def again(name: str) -> str:
    """The command that measures a part again."""
    parts = f"prepare {name}" if "--prepared" in PARTS[name].arguments else name
    return f"python benchmarks/everything.py --parts {parts}" + (" --data FOLDER" if PARTS[name].needs_data else "")


def measure(name: str, seconds: float, data: Path | None) -> None:
    """Run a part for so long at most, and keep what it measured."""
    started = time.monotonic()
    results = BENCHMARKS / "results" / "cpu" if PARTS[name].needs_data else folder()
    kept = results / f"{name}.json"
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / f"{name}.json"
        complete, measured = run(PARTS[name], output, seconds, data), output.exists()
        if measured:
            content = json.loads(output.read_text(encoding="utf-8"))
            circumstances(content)["command"] = again(name)
            if kept.exists():
                content = merged(json.loads(kept.read_text(encoding="utf-8")), content)
            results.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    state = ("done" if complete else "stopped") + ("" if measured else ", no results")
    print(f"== {name}: {state} after {time.monotonic() - started:.0f} s", flush=True)


def rounds(names: list[str]) -> list[list[str]]:
    """What runs after one another, and in each what runs side by side."""
    together = [name for name in names if not PARTS[name].timed]
    return [group for group in (together, *([name] for name in names if PARTS[name].timed)) if group]


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), help="all, without those that need --data if it is not given"
    )
    parser.add_argument("--limit", type=float, default=3600, help="seconds for all parts together")
    parser.add_argument("--data", type=Path, help="folder of trained models and data, as accuracy.py describes it")
    options = parser.parse_args()
    data = options.data and options.data.resolve()
    names = options.parts or [name for name in PARTS if data or not PARTS[name].needs_data]
    if lacking := [name for name in names if PARTS[name].needs_data and not data]:
        parser.error(f"{' and '.join(lacking)} need --data")
    end = time.monotonic() + options.limit
    waiting = rounds(names)
    while waiting:
        shares = [max(PARTS[name].share for name in group) for group in waiting]
        seconds = (end - time.monotonic()) * shares[0] / sum(shares)
        group = waiting.pop(0)
        with ThreadPoolExecutor(len(group)) as pool:
            list(pool.map(partial(measure, seconds=seconds, data=data), group))
    tables.write()
    plots.write()


if __name__ == "__main__":
    main()
