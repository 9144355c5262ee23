"""Run the tests that need a GPU, and record what they covered.

    python benchmarks/gpu_tests.py [--sanitize] [--select EXPRESSION] [--limit SECONDS] [--output FILE]

The tests run side by side, dealt out to as many processes as there are cores by what they took when results were
recorded last; the files of _ALONE, which take much memory, one after the other in a process of their own. --select is
pytest's -k. With --sanitize the reduced set of
tests/gpu/sanitize.py also runs under compute-sanitizer's memcheck and racecheck, after the tests.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck")
PROCESSES = max(1, (os.cpu_count() or 2) - 1)
GRACE = 8
"""Seconds that an interrupted process has to write its record."""
LONG = 1.0
"""Seconds from which on a case's time is recorded."""
SHORT = 0.2
"""What another one is taken to take."""
_ALONE = ("test_gemm_offsets.py",)


def recorded() -> dict[str, float]:
    """Seconds of the cases that took long when results were recorded, on whatever machine."""
    results = sorted((ROOT / "benchmarks" / "results").glob("*/gpu_tests.json"))
    return {name: took for path in results for name, took in json.loads(path.read_text()).get("long_cases", {}).items()}


def groups(select: str, took: dict[str, float]) -> list[list[str]]:
    """Arguments of pytest for each process; `took`: seconds of the cases that take long."""
    folder = ROOT / "tests" / "gpu"
    alone = [str(folder / name) for name in _ALONE]
    options = ["-q", "--collect-only", "-p", "no:cacheprovider", *(f"--ignore={path}" for path in alone)]
    command = [sys.executable, "-m", "pytest", *options, *_selecting(select), str(folder)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = [line for line in listed.stdout.splitlines() if "::" in line]
    if not names:
        said = (listed.stdout + listed.stderr).strip().splitlines()
        sys.exit(f"no test is selected: {said[-1] if said else select}")
    return ([] if select else [[path] for path in alone]) + dealt(names, took, PROCESSES)


def _selecting(select: str) -> list[str]:
    return ["-k", select] if select else []


def dealt(names: list[str], took: dict[str, float], processes: int) -> list[list[str]]:
    """The cases in as many parts of about the same time, the longest cases first in each.

    Cases that differ in their last parameter alone stay together: they use what a process makes once, cuDNN's plans.
    """
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(name.rpartition("-")[0] or name, []).append(name)
    seconds = {unit: sum(took.get(n.rpartition("::")[2], SHORT) for n in cases) for unit, cases in units.items()}
    parts: list[list[str]] = [[] for _ in range(processes)]
    loads = [0.0] * processes
    for unit in sorted(units, key=lambda unit: -seconds[unit]):
        least = loads.index(min(loads))
        parts[least] += units[unit]
        loads[least] += seconds[unit]
    return [part for part in parts if part]


def run_tests(limit: float, select: str) -> dict[str, Any]:
    """Counts of all tests, and of the cases of each, and seconds of the cases that took long.

    Processes that run longer than `limit` seconds are interrupted: "stopped" counts them, and the tests that they had
    run by then count. One that leaves no record is an error.
    """
    # a core for each process
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for i, arguments in enumerate(groups(select, recorded())):
            report = Path(folder) / f"{i}.xml"
            options = [
                "-q",
                "-p",
                "no:cacheprovider",
                "--tb=short",
                "-rf",
                "-o",
                "junit_family=legacy",
                f"--junitxml={report}",
            ]
            command = [sys.executable, "-m", "pytest", *options, *arguments]
            running[report] = subprocess.Popen(command, cwd=ROOT, env=environment)
        stopped = _wait(list(running.values()), start + limit)
        finished = [report for report in running if report.exists()]
        suites = [suite for report in finished for suite in ElementTree.parse(report).iter("testsuite")]
    counts = {
        what: sum(int(suite.get(what, 0)) for suite in suites) for what in ("tests", "failures", "errors", "skipped")
    }
    counts["errors"] += len(running) - len(finished)  # processes that died
    counts["stopped"] = stopped
    cases_run = [case for suite in suites for case in suite.iter("testcase") if case.get("name")]
    names = [case.get("name", "").partition("[")[0] for case in cases_run]
    cases = dict(sorted(collections.Counter(names).items()))
    failed = [str(case.get("name")) for case in cases_run if case.find("failure") is not None]
    times = {str(case.get("name")): round(float(case.get("time", 0)), 1) for case in cases_run}
    long = dict(sorted((item for item in times.items() if item[1] >= LONG), key=lambda item: -item[1]))
    seconds = round(time.monotonic() - start, 1)
    return {**counts, "failed": failed, "seconds": seconds, "cases": cases, "long_cases": long}


def _wait(processes: list[subprocess.Popen[bytes]], end: float) -> int:
    """Wait for all until time.monotonic() is `end`, then interrupt, and later kill, the rest; how many that are."""
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, end - time.monotonic()))
    late = [process for process in processes if process.poll() is None]
    for process in late:
        process.send_signal(signal.SIGINT)
    for process in late:
        try:
            process.wait(max(0, end + GRACE - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return len(late)


def coverage() -> dict[str, int]:
    """How many DeftGemm cases, and different shapes of X and W, the matrix of pairs and the list of shapes hold."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "gpu")]
    from gemm_cases import FACTORS, covering_rows, make_case
    from test_gemm_matrix import SHAPES

    cases = [make_case(row, seed) for seed, row in enumerate(covering_rows())]
    shapes = {(case.X.shape, case.packed.K, case.packed.N) for case in cases}
    shapes |= {((M, K), K, N) for M, K, N in SHAPES}
    return {"factors": len(FACTORS), "cases_of_pairs": len(cases), "shapes": len(shapes)}


def sanitize(tool: str) -> list[str]:
    """What compute-sanitizer says at the end, of each part of the set."""
    command = [sys.executable, str(ROOT / "tests" / "gpu" / "sanitize.py"), tool]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = [line.strip("= ") for line in (done.stdout + done.stderr).splitlines() if "SUMMARY" in line]
    return [f"exit code {done.returncode}", *lines]


def environment() -> dict[str, str]:
    """The GPU and its driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    return {"gpu": gpu, "driver": driver}


def main() -> None:
    """Run and record; exits 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--select", default="", help="only tests that pytest's -k takes")
    parser.add_argument("--limit", type=float, default=900, help="seconds for the tests")
    parser.add_argument("--commit", default="", help="what was built, where this is no checkout")
    parser.add_argument("--output", type=Path, default=Path("gpu_tests.json"))
    arguments = parser.parse_args()
    commit = arguments.commit or record.commit()
    head = {"date": datetime.now(UTC).date().isoformat(), "commit": commit, "command": "python benchmarks/gpu_tests.py"}
    result = {**head, **environment(), **run_tests(arguments.limit, arguments.select), **coverage()}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for tool in TOOLS if arguments.sanitize else ():
        result[tool] = sanitize(tool)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print({name: value for name, value in result.items() if name not in ("cases", "long_cases")})
    sys.exit(1 if result["failures"] or result["errors"] or result["stopped"] else 0)


if __name__ == "__main__":
    main()
