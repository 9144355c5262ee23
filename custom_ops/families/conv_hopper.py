"""The kernels of kernels/gemm_hopper.cu for DeftConv, in the ways of sharing work that tuning/sm90.json lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from images import Row, Table

from families import hopper

TABLE = Table("conv_hopper.h", "HopperImage", "kHopperConvImages")


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    return hopper.compiled(hopper.kernels(architectures, convolution=True), cache)
