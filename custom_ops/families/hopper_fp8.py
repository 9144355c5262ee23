"""The kernels of kernels/gemm_hopper_fp8.cu, one for each tile that tuning/sm90.json lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compile_cuda
from images import Image, Row, Table

from families.hopper import TUNING, shared_bytes_of, threads_of

TABLE = Table("gemm_hopper_fp8.h", "HopperFp8Image", "kHopperFp8Images")
_SOURCE, _TARGET, _ARCHITECTURE = "gemm_hopper_fp8.cu", "90a", 90


@dataclass(frozen=True)
class HopperFp8:
    """One kernel; times in nanoseconds, see runtime/gemm_hopper_fp8.h."""

    tile: tuple[int, int]  # rows of X, output features
    stages: int
    step_ns: float
    tile_ns: float
    fixed_ns: float

    @property
    def entry(self) -> str:
        """The function's name in the machine code."""
        return f"hopper_fp8_{self.tile[0]}x{self.tile[1]}"

    @property
    def name(self) -> str:
        """What users and result files call it."""
        return f"fp8_hopper_{self.tile[0]}x{self.tile[1]}"

    @property
    def warpgroups(self) -> int:
        """Warpgroups that multiply."""
        return self.tile[0] // 64

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return threads_of(self.warpgroups)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory, as laid out in kernels/hopper_work.cuh."""
        return shared_bytes_of(self.tile, self.stages, self.warpgroups)


def kernels(architectures: list[int] | None = None) -> list[HopperFp8]:
    """Return the kernels, if their architecture is asked for."""
    if architectures is not None and _ARCHITECTURE not in architectures:
        return []
    table = json.loads(TUNING.read_text())["gemm_hopper_fp8"]
    return [HopperFp8(**row | {"tile": tuple(row["tile"])}) for row in table]


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    members = kernels(architectures)
    if not members:
        return []
    code = compile_cuda.compile_cached(_SOURCE, _TARGET, cache)
    return [_row(kernel, code) for kernel in members]


def _row(kernel: HopperFp8, code: bytes) -> Row:
    image = Image(kernel.name, kernel.entry, _ARCHITECTURE, code, kernel.shared_bytes, kernel.threads)
    times = (kernel.step_ns, kernel.tile_ns, kernel.fixed_ns)
    return Row(image, (*kernel.tile, *times))
