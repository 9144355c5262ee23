"""Compiles a CUDA C++ kernel file to machine code, without a GPU."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).parent / "kernels"
_OPTIONS = ("-std=c++17", "-O3", "-cubin")


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


def _sources(path: Path) -> list[Path]:
    """`path` and the files of its folder that it includes, each once, in a fixed order."""
    found = [path]
    for file in found:
        for name in re.findall(r'^#include "(.+)"', file.read_text(), re.MULTILINE):
            included = file.parent / name
            if included not in found:
                found.append(included)
    return found


@functools.cache
def _version(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


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
    for path in _sources(KERNELS / source):
        digest.update(path.read_bytes())
    code = cache / f"{digest.hexdigest()[:32]}.cubin"
    if not code.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pending = code.with_suffix(f".{os.getpid()}")
        architecture = f"-gencode=arch=compute_{target},code=sm_{target}"
        command = [nvcc, *_OPTIONS, architecture, "-o", str(pending), str(KERNELS / source)]
        subprocess.run(command, check=True)
        pending.replace(code)
    return code.read_bytes()
