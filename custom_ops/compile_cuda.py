"""Compiles a CUDA C++ kernel file to machine code, without a GPU."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).parent / "kernels"
_OPTIONS = ("-std=c++17", "-O3", "-cubin")
_MOST_STACK = 64
"""Bytes of local memory a thread may use: more is an array that did not fit, or was not indexed by constants, and a
kernel that is much slower for it."""


def find_nvcc() -> str:
    """Return the CUDA compiler: NVCC, else the one of the package nvidia-cuda-nvcc, else that on the path.

    Raises FileNotFoundError if there is none.
    """
    if chosen := os.environ.get("NVCC"):
        return chosen
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(folder).glob("*/bin/nvcc")):
            return str(path)
    if found := shutil.which("nvcc"):
        return found
    raise FileNotFoundError("no CUDA compiler: install nvidia-cuda-nvcc, or set NVCC")


def with_includes(path: Path, folder: Path) -> list[Path]:
    """`path` and the files of `folder` that it includes, each once, in a fixed order."""
    found = [path]
    for file in found:
        for name in re.findall(r'^#include "(.+)"', file.read_text(), re.MULTILINE):
            included = folder / name
            if included not in found:
                found.append(included)
    return found


@functools.cache
def _version(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


def _split_usage(text: str) -> tuple[dict[str, int], str]:
    """From what ptxas -v writes: the bytes of stack of each function, and the lines that are not its information."""
    found = re.findall(r"Function properties for (\S+)\s+(\d+) bytes stack frame", text)
    information = re.compile(r"ptxas info|\s+\d+ bytes stack frame|Compile time")
    other = [line for line in text.splitlines(keepends=True) if not information.match(line)]
    return {kernel: int(stack) for kernel, stack in found}, "".join(other)


def compile_for(architectures: Iterable[int], source: str, cache: Path, each: Callable[..., Any]) -> dict[int, bytes]:
    """Return the machine code of kernels/`source` for each architecture, once; `each` maps, perhaps side by side."""
    chosen = list(dict.fromkeys(architectures))
    codes = each(functools.partial(compile_cached, source, cache=cache), [str(a) for a in chosen])
    return dict(zip(chosen, codes, strict=True))


def compile_cached(source: str, target: str, cache: Path) -> bytes:
    """Return the machine code of kernels/`source`, from the folder `cache` if it is there.

    target: what it is for, as in "80", or "90a" with instructions that only that architecture has.
    """
    nvcc = find_nvcc()
    digest = hashlib.sha256(f"{source} {target} {_OPTIONS} {_version(nvcc)}".encode())
    for path in with_includes(KERNELS / source, KERNELS):
        digest.update(path.read_bytes())
    code = cache / f"{digest.hexdigest()[:32]}.cubin"
    if not code.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pending = code.with_suffix(f".{os.getpid()}")
        architecture = f"-gencode=arch=compute_{target},code=sm_{target}"
        command = [nvcc, *_OPTIONS, architecture, "-Xptxas", "-v", "-o", str(pending), str(KERNELS / source)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        usage, other = _split_usage(done.stderr)
        sys.stderr.write(other)
        done.check_returncode()
        if large := [f"{kernel} ({stack})" for kernel, stack in usage.items() if stack > _MOST_STACK]:
            raise RuntimeError(f"{source}: kernels with arrays in local memory (bytes a thread): {', '.join(large)}")
        pending.replace(code)
    return code.read_bytes()
