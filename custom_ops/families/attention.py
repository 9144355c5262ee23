"""Attention over packed queries, keys and values, kernels/attention.cu and attention_hopper.cu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("attention_op.h", "AttentionImage", "kAttentionImages")
_SOURCE, _HOPPER_SOURCE = "attention.cu", "attention_hopper.cu"
_HOPPER, _HOPPER_TARGET, _HOPPER_SIZE = 90, "90a", 64
_THREADS = 128
_STAGES = 2 * 2 * 64  # rows of keys and values in shared memory
_SIZES, _TILES = (32, 64), (1, 2)
"""The largest head size, and the rows of a warp, in sixteens."""


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    chosen = architectures or ARCHITECTURES
    codes = compile_cuda.compile_for(chosen, _SOURCE, cache, each)
    return _hopper(cache) * (_HOPPER in chosen) + [
        _row(x_type, size, tiles, architecture, code)
        for architecture, code in codes.items()
        for x_type in ("fp16", "bf16")
        for size in _SIZES
        for tiles in _TILES
    ]


def _hopper(cache: Path) -> list[Row]:
    code = compile_cuda.compile_cached(_HOPPER_SOURCE, _HOPPER_TARGET, cache)
    return [_hopper_row(x_type, code) for x_type in ("fp16", "bf16")]


def _hopper_row(x_type: str, code: bytes) -> Row:
    name = f"attention_{x_type}_hopper"
    queries = 64
    shared_bytes = (queries + _STAGES) * 2 * _HOPPER_SIZE
    image = Image(name, name, _HOPPER, code, shared_bytes, _THREADS)
    return Row(image, (element_type(x_type), _HOPPER_SIZE, queries, "true"))


def _row(x_type: str, size: int, tiles: int, architecture: int, code: bytes) -> Row:
    name = f"attention_{x_type}_{size}_{tiles}"
    queries = 16 * tiles * _THREADS // 32
    shared_bytes = (queries + _STAGES) * (2 * size + 16)
    image = Image(name, name, architecture, code, shared_bytes, _THREADS)
    return Row(image, (element_type(x_type), size, queries, "false"))
