"""kernels/unpack_codes.cu: 8-bit weights written in 16 bits when a session is made, and told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import Image, Row, Table

TABLE = Table("gemm_unpacked.h", "UnpackImage", "kUnpackImages")
_SOURCE = "unpack_codes.cu"
_ENTRIES = {"unpack_codes": "kUnpacks", "digest_codes": "kDigests"}
_ARCHITECTURE = 90  # where kernels of 16-bit weights are faster by enough
_THREADS = 256


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels, if their architecture is asked for, and return their rows."""
    if architectures is not None and _ARCHITECTURE not in architectures:
        return []
    code = compile_cuda.compile_cached(_SOURCE, str(_ARCHITECTURE), cache)
    return [
        Row(Image(entry, entry, _ARCHITECTURE, code, 0, _THREADS), (f"UnpackImage::{what}",))
        for entry, what in _ENTRIES.items()
    ]
