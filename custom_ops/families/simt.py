"""The kernels for the FP32 units: kernels/gemm_simt.cu."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("gemm_simt.h", "SimtImage", "kSimtImages")
_ARCHITECTURES = (75, *ARCHITECTURES)
_SOURCE = "gemm_simt.cu"
_THREADS = 256
_X_TYPES = ("fp32", "fp16", "bf16")
_FORMATS = {"fp32": "kFloat32", "half": "kHalf", "deft16": "kDeft16", "deft16q": "kDeft16q", "deft8": "kDeft8"}
_TILES = (64, 128)


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    chosen = [a for a in _ARCHITECTURES if architectures is None or a in architectures]
    codes = compile_cuda.compile_for(chosen, _SOURCE, cache, each)
    return [
        _row(architecture, code, *variant)
        for architecture, code in codes.items()
        for variant in product(_X_TYPES, _FORMATS, _TILES)
    ]


def _row(architecture: int, code: bytes, x_type: str, packing: str, tile: int) -> Row:
    name = f"{x_type}_{packing}_simt_{tile}x{tile}"
    image = Image(name, f"{x_type}_{packing}_{tile // 16}", architecture, code, 0, _THREADS)
    return Row(image, (element_type(x_type), f"Format::{_FORMATS[packing]}", tile))
