"""The convolution of images of few channels, kernels/conv_few_channels.cu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("conv_few_channels.h", "ConvFewChannelsImage", "kConvFewChannelsImages")
_SOURCE = "conv_few_channels.cu"
_THREADS = 256
_SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""The most that a block can have; machine code of 80 also runs on 86 and 89. A launch asks for what it needs."""


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    codes = compile_cuda.compile_for(architectures or ARCHITECTURES, _SOURCE, cache, each)
    return [
        Row(
            Image(
                f"{x_type}_few_channels{ending}",
                f"{x_type}{ending}",
                architecture,
                code,
                _SHARED_BYTES[architecture],
                _THREADS,
            ),
            (element_type(x_type), str(bool(ending)).lower()),
        )
        for architecture, code in codes.items()
        for x_type in ("fp16", "bf16")
        for ending in ("", "_pooled")
    ]
