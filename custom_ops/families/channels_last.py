"""From channels first to channels last, kernels/channels_last.cu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table

TABLE = Table("channels_last_op.h", "ChannelsLastImage", "kChannelsLastImages")
_SOURCE = "channels_last.cu"
_THREADS = 256
_ELEMENT_SIZES = (2, 4)
"""Bytes."""


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    codes = compile_cuda.compile_for(architectures or ARCHITECTURES, _SOURCE, cache, each)
    return [_row(size, architecture, code) for architecture, code in codes.items() for size in _ELEMENT_SIZES]


def _row(size: int, architecture: int, code: bytes) -> Row:
    name = f"channels_last_{size}_bytes"
    return Row(Image(name, name, architecture, code, 0, _THREADS), (size,))
