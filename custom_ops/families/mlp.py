"""Chains of small fully connected layers, kernels/mlp.cu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("cuda_mlp.h", "MlpImage", "kMlpImages")
_SOURCE = "mlp.cu"
_THREADS = 256
_SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # the most a block may have
_RING = {80: 16, 90: 32, 100: 32, 120: 16}
"""Steps of weights in a warp's ring: kRing of the source."""
_TYPES = ("fp16", "bf16")
_ROWS = (16, 32, 0)
"""Of X that a cluster takes; 0: the kernel that only rounds them."""


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    codes = compile_cuda.compile_for(architectures or ARCHITECTURES, _SOURCE, cache, each)
    return [
        _row(x_type, count, architecture, code)
        for architecture, code in codes.items()
        for x_type in _TYPES
        for count in _ROWS
    ]


def _row(x_type: str, count: int, architecture: int, code: bytes) -> Row:
    name = f"{x_type}_mlp_{count or 'round'}"
    image = Image(name, name, architecture, code, _SHARED_BYTES[architecture], _THREADS)
    return Row(image, (element_type(x_type), count, _RING[architecture]))
