"""The kernels of kernels/conv_resident.cu: DeftConv's filters of few features on Hopper."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import Image, Row, Table, element_type

from families import hopper

TABLE = Table("conv_resident.h", "ConvResidentImage", "kConvResidentImages")
_SOURCE, _TARGET, _ARCHITECTURE = "conv_resident.cu", "90a", 90
_SHARED_BYTES = 227 * 1024  # all that a block can have: what W leaves is stages


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    if architectures is not None and _ARCHITECTURE not in architectures:
        return []
    code = compile_cuda.compile_cached(_SOURCE, _TARGET, cache)
    table = json.loads(hopper.TUNING.read_text())["conv_resident"]
    return [_row(row, name, code) for row in table for name in ("fp16", "bf16")]


def _row(row: dict[str, Any], name: str, code: bytes) -> Row:
    columns, warpgroups = row["columns"], row["warpgroups"]
    tile = f"{columns}x{warpgroups}"
    threads = 128 * warpgroups + (128 if columns > 64 else 64)
    image = Image(
        f"{name}_hopper_resident_{tile}", f"resident_{name}_{tile}", _ARCHITECTURE, code, _SHARED_BYTES, threads
    )
    times = (row["step_ns"], row["tile_ns"], row["fixed_ns"])
    return Row(image, (element_type(name), columns, warpgroups, *times))
