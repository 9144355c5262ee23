"""Compiles a CUDA C++ kernel file to machine code, without a GPU."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

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


@functools.cache
def _version(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


def compile_cached(source: str, architecture: int, cache: Path) -> bytes:
    """Return the machine code of kernels/`source`, from the folder `cache` if it is there."""
    nvcc = find_nvcc()
    digest = hashlib.sha256(f"{source} {architecture} {_OPTIONS} {_version(nvcc)}".encode())
    for name in (source, "epilogue.cuh", "mma_operands.cuh"):
        digest.update((KERNELS / name).read_bytes())
    code = cache / f"{digest.hexdigest()[:32]}.cubin"
    if not code.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pending = code.with_suffix(f".{os.getpid()}")
        command = [nvcc, *_OPTIONS, f"-arch=sm_{architecture}", "-o", str(pending), str(KERNELS / source)]
        subprocess.run(command, check=True)
        pending.replace(code)
    return code.read_bytes()
