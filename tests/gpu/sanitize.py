"""A reduced set of DeftGemm cases under compute-sanitizer: out-of-bounds accesses and races in shared memory.

    python tests/gpu/sanitize.py [memcheck|racecheck|synccheck|initcheck ...]

Every operand and path is in the set, with the small shapes of the covering array. Exits 1 if a tool finds anything.
"""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  (its CUDA libraries must be in the process before onnxruntime's)

import onnxruntime
from gemm_cases import covering_rows, failure, make_case, run_cases

from deftonnx import runtime

CHUNK = 32


def reduced_rows():
    """Two rows of the covering array for every operand and path: small, but of every kind of tail."""
    chosen, counts = [], {}
    for row in covering_rows():
        small = row["features"] in ("odd", "sixteens") and row["rows"] in ("few", "some")
        if small and counts.get(row["operands"], 0) < 2:
            counts[row["operands"]] = counts.get(row["operands"], 0) + 1
            chosen.append(row)
    return chosen


def run():
    """Run the set in this process; returns what is wrong."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    runtime.register(options)
    rows = reduced_rows()
    failures = []
    for first in range(0, len(rows), CHUNK):
        cases = [make_case(row, seed) for seed, row in enumerate(rows[first : first + CHUNK], first)]
        outputs = run_cases(cases, options, "CUDAExecutionProvider")
        failures += [f for case, Y in zip(cases, outputs, strict=True) if (f := failure(case, Y))]
        print(f"{first + len(cases)} cases", flush=True)
    return failures


def main():
    if "--inside" in sys.argv:
        sys.exit("\n".join(run()) or 0)
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        sys.exit("compute-sanitizer is not on the path; it comes with CUDA")
    for tool in sys.argv[1:] or ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, __file__, "--inside"]
        print(tool, flush=True)
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit(f"{tool} found errors")


if __name__ == "__main__":
    main()
