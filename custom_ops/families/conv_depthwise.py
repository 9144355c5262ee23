"""The convolution of one channel a group, kernels/conv_depthwise.cu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("conv_depthwise.h", "ConvDepthwiseImage", "kConvDepthwiseImages")
_SOURCE = "conv_depthwise.cu"
_THREADS = 256
_FILTERS = ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (0, 0))  # columns and stride, the more special first; 0: any


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    codes = compile_cuda.compile_for(architectures or ARCHITECTURES, _SOURCE, cache, each)
    return [
        _row(architecture, code, x_type, columns, stride)
        for architecture, code in codes.items()
        for x_type in ("fp16", "bf16")
        for columns, stride in _FILTERS
    ]


def _row(architecture: int, code: bytes, x_type: str, columns: int, stride: int) -> Row:
    suffix = f"{columns}{'_stride2' if stride == 2 else ''}" if columns else "any"
    image = Image(f"{x_type}_depthwise_{suffix}", f"{x_type}_{suffix}", architecture, code, 0, _THREADS)
    return Row(image, (element_type(x_type), columns, stride))
