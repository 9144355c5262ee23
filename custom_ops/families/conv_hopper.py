"""The convolution on Hopper's tensor cores, kernels/conv_hopper.cu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import Image, Row, Table, element_type

TABLE = Table("conv_hopper.h", "ConvHopperImage", "kConvHopperImages")
_SOURCE = "conv_hopper.cu"
_ARCHITECTURE = 90
_THREADS = 384
_TILE_ROWS = 128
_STEP_BYTES = 128  # of a row
_OUTPUT_BYTES = 2 * 2 * 64 * 128  # two buffers of 64 rows for each warpgroup
_LINE_BYTES = 8  # scale and bias of an output, at most once for each warpgroup
_BARRIER_BYTES = 16  # of a stage
_STAGES = {256: 4, 128: 6, 64: 8}  # of each tile width, as in the kernel


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    if architectures is not None and _ARCHITECTURE not in architectures:
        return []
    (code,) = each(compile_cuda.compile_cached, [_SOURCE], [f"{_ARCHITECTURE}a"], [cache])
    return [_row(code, x_type, columns, stages) for x_type in ("fp16", "bf16") for columns, stages in _STAGES.items()]


def _row(code: bytes, x_type: str, columns: int, stages: int) -> Row:
    tiles = stages * (_TILE_ROWS + columns) * _STEP_BYTES
    shared = tiles + _OUTPUT_BYTES + _LINE_BYTES * max(columns, 2 * 64) + _BARRIER_BYTES * stages
    name = f"{x_type}_hopper_{_TILE_ROWS}x{columns}"
    image = Image(name, f"{x_type}_{columns}", _ARCHITECTURE, code, shared, _THREADS)
    return Row(image, (element_type(x_type), columns))
