"""Attention over packed queries, keys and values, kernels/attention.cu and attention_hopper.cu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("attention_op.h", "AttentionImage", "kAttentionImages")
_SOURCE, _HOPPER_SOURCE = "attention.cu", "attention_hopper.cu"
_HOPPER, _HOPPER_TARGET, _HOPPER_SIZES = 90, "90a", (64, 128)
_THREADS = 128
_STAGES = 2 * 2 * 64  # rows of keys and values in shared memory
_TURNS = 2 * 64  # rows of cosines and sines
_SHAPES = ((32, 1), (32, 2), (64, 1), (64, 2), (128, 1))
"""The largest head size, and the rows of a warp, in sixteens."""


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    chosen = architectures or ARCHITECTURES
    codes = compile_cuda.compile_for(chosen, _SOURCE, cache, each)
    return _hopper(cache) * (_HOPPER in chosen) + [
        _row(x_type, size, tiles, architecture, code)
        for architecture, code in codes.items()
        for x_type in ("fp16", "bf16")
        for size, tiles in _SHAPES
    ]


def _hopper(cache: Path) -> list[Row]:
    code = compile_cuda.compile_cached(_HOPPER_SOURCE, _HOPPER_TARGET, cache)
    return [_hopper_row(x_type, size, code) for x_type in ("fp16", "bf16") for size in _HOPPER_SIZES]


def _hopper_row(x_type: str, size: int, code: bytes) -> Row:
    queries = 64
    name, row_bytes = f"attention_{x_type}_hopper_{size}", 2 * size
    image = Image(name, name, _HOPPER, code, (queries + _STAGES + _TURNS) * row_bytes, _THREADS)
    return Row(image, (element_type(x_type), size, queries, _TURNS * row_bytes, "true"))


def _row(x_type: str, size: int, tiles: int, architecture: int, code: bytes) -> Row:
    name, row_bytes = f"attention_{x_type}_{size}_{tiles}", 2 * size + 16
    queries = 16 * tiles * _THREADS // 32
    image = Image(name, name, architecture, code, (queries + _STAGES) * row_bytes, _THREADS)
    return Row(image, (element_type(x_type), size, queries, 0, "false"))
