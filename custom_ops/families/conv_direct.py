"""The convolution that serves every shape, kernels/conv_direct.cu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("conv_direct.h", "ConvDirectImage", "kConvDirectImages")
_SOURCE = "conv_direct.cu"
_THREADS = 256


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    codes = compile_cuda.compile_for(architectures or ARCHITECTURES, _SOURCE, cache, each)
    return [
        Row(Image(f"{x_type}_direct", x_type, architecture, code, 0, _THREADS), (element_type(x_type),))
        for architecture, code in codes.items()
        for x_type in ("fp32", "fp16", "bf16")
    ]
