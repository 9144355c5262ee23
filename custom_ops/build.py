"""Builds libdeftonnx_ops.so: kernels → machine code → a table of them → one library.

    python custom_ops/build.py [--arch 90 ...] [--jobs 2] [--output PATH] [--strict]

Needs Triton, nvcc (NVCC, or the package nvidia-cuda-nvcc) and a C++17 compiler (CXX, or c++), but no GPU: see
kernel_tools.py.
What is compiled is kept by content in custom_ops/build/cache, so that a second build takes seconds.
"""

from __future__ import annotations

import argparse
import functools
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import compile_cpp  # noqa: E402
from families import FAMILIES  # noqa: E402
from images import write_tables  # noqa: E402

BUILD = HERE / "build"
PACKAGE = HERE.parent / "deftonnx"
LIBRARY = PACKAGE / "runtime" / "libdeftonnx_ops.so"


def link(code: Path, table: Path, output: Path, strict: bool = False, each: Callable[..., Any] = map) -> None:
    """Compile the C++ runtime with the kernels' code and table, and link the library.

    strict: warnings are errors; each: maps, perhaps side by side. Raises CalledProcessError.
    """
    runtime = compile_cpp.RUNTIME
    sources = [*sorted(runtime.glob("*.cpp")), table]
    cache = BUILD / "cache"
    header = compile_cpp.precompile_headers(cache, strict)
    objects = each(functools.partial(compile_cpp.compile_cached, cache=cache, header=header, strict=strict), sources)
    pending = output.with_suffix(f".{os.getpid()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(compile_cpp.compiler(), "-shared", f"-Wl,--version-script={runtime / 'exports.map'}", "-Wl,-z,defs"),
        # closed with the last session, it would lose what a process loads once: machine code, cuDNN's plans
        "-Wl,-z,nodelete",
        *("-static-libstdc++", "-static-libgcc", "-o", str(pending)),
        *map(str, [*objects, code]),
        "-ldl",
        "-lpthread",
    ]
    subprocess.run(command, check=True)
    pending.replace(output)


def package_version() -> str:
    """The version of the package that the library belongs to."""
    return str(runpy.run_path(str(PACKAGE / "version.py"))["__version__"])


def build(architectures: list[int] | None, jobs: int, output: Path, strict: bool = False) -> None:
    """Compile what the cache lacks and link the library at `output`."""
    start = time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        each = pool.map if jobs > 1 else map
        tables = {family.TABLE: family.rows(architectures, BUILD / "cache", each) for family in FAMILIES}
        link(*write_tables(tables, BUILD / "table", package_version()), output, strict, each)
    processor = sum(os.times()[:4])
    print(
        f"{output}: {sum(map(len, tables.values()))} kernels, {output.stat().st_size / 2**20:.1f} MiB, "
        f"{time.monotonic() - start:.0f} s, {processor / 60:.1f} CPU-minutes"
    )


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, action="append", help="only this compute capability, as in 90")
    parser.add_argument("--jobs", type=int, default=1, help="kernels compiled at once")
    parser.add_argument("--output", type=Path, default=LIBRARY)
    parser.add_argument("--strict", action="store_true", help="the C++ compiler's warnings are errors")
    arguments = parser.parse_args()
    build(arguments.arch, arguments.jobs, arguments.output, arguments.strict)


if __name__ == "__main__":
    main()
