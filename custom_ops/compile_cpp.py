"""Compiles the C++ runtime to object files, without ONNX Runtime or CUDA."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from pathlib import Path

from compile_cuda import with_includes

RUNTIME = Path(__file__).parent / "runtime"
_HEADERS = (
    "algorithm",
    "array",
    "atomic",
    "cmath",
    "functional",
    "map",
    "memory",
    "mutex",
    "sstream",
    "string",
    "vector",
)
"""Of the standard library, that most files include."""
_OPTIONS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")


def compiler() -> str:
    """The C++ compiler: CXX, or c++."""
    return os.environ.get("CXX", "c++")


def _command(strict: bool) -> list[str]:
    return [compiler(), *_OPTIONS, *(["-Werror"] if strict else [])]


@functools.cache
def _version(command: str) -> str:
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout


def precompile_headers(cache: Path, strict: bool = False) -> Path:
    """A header that includes _HEADERS, beside it what the compiler reads in its place: a quarter of all time.

    Raises CalledProcessError.
    """
    text = "".join(f"#include <{name}>\n" for name in _HEADERS)
    digest = hashlib.sha256(f"{text} {_command(strict)} {_version(compiler())}".encode())
    header = cache / f"{digest.hexdigest()[:32]}.h"
    precompiled = header.with_suffix(".h.gch")
    if not precompiled.exists():
        cache.mkdir(parents=True, exist_ok=True)
        header.write_text(text)
        pending = header.with_suffix(f".{os.getpid()}")
        subprocess.run([*_command(strict), "-x", "c++-header", "-o", str(pending), str(header)], check=True)
        pending.replace(precompiled)
    return header


def compile_cached(source: Path, cache: Path, header: Path, strict: bool = False) -> Path:
    """The object file of `source`, in the folder `cache`, made if it is not there; `strict`: warnings are errors.

    header: of precompile_headers. Raises CalledProcessError.
    """
    digest = hashlib.sha256(f"{source.name} {header.name}".encode())
    for path in with_includes(source, RUNTIME):
        digest.update(path.read_bytes())
    code = cache / f"{digest.hexdigest()[:32]}.o"
    if not code.exists():
        pending = code.with_suffix(f".{os.getpid()}")
        options = [f"-I{RUNTIME}", "-include", str(header), "-c", "-o", str(pending)]
        subprocess.run([*_command(strict), *options, str(source)], check=True)
        pending.replace(code)
    return code
