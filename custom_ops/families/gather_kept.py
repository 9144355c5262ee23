"""kernels/gather_kept.cu: kept features of X written side by side, by the bytes that are copied together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table

TABLE = Table("gemm_gathered.h", "GatherKeptImage", "kGatherKeptImages")
_SOURCE = "gather_kept.cu"
_THREADS = 256
_WORDS = (16, 4, 2)  # bytes


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    chosen = [a for a in ARCHITECTURES if architectures is None or a in architectures]
    codes = compile_cuda.compile_for(chosen, _SOURCE, cache, each)
    return [
        Row(Image(entry, entry, architecture, code, 0, _THREADS), (word,))
        for architecture, code in codes.items()
        for word in _WORDS
        for entry in [f"gather_kept_{word}"]
    ]
