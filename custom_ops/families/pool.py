"""Pooling and local response normalisation, kernels/pool.cu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("pool_image.h", "PoolImage", "kPoolImages")
_SOURCE = "pool.cu"
_THREADS = 256
_KINDS = {"max": "kMax", "average": "kAverage", "normalise": "kNormalise"}
_WIDTHS = {"fp32": 4, "fp16": 8, "bf16": 8}
"""Channels of 16 bytes."""


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    codes = compile_cuda.compile_for(architectures or ARCHITECTURES, _SOURCE, cache, each)
    return [
        _row(kind, x_type, width, architecture, code)
        for architecture, code in codes.items()
        for kind in _KINDS
        for x_type, widest in _WIDTHS.items()
        for width in (widest, 1)
    ]


def _row(kind: str, x_type: str, width: int, architecture: int, code: bytes) -> Row:
    name = f"{kind}_{x_type}_{width}"
    fields = (f"PoolKind::{_KINDS[kind]}", element_type(x_type), width)
    return Row(Image(name, name, architecture, code, 0, _THREADS), fields)
