"""DeftGemm in kernels/gemm_hopper.cu and gemm_transposed.cu, in the ways of sharing work of tuning/sm90.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compile_cuda
from images import Image, Row, Table, element_type

TABLE = Table("gemm_hopper.h", "HopperImage", "kHopperImages")
TUNING = Path(__file__).parents[1] / "tuning" / "sm90.json"
_TARGET, _ARCHITECTURE = "90a", 90
_PAIRS = {"none": 0, "rows": 1, "columns": 2}
_ROW_BYTES = 128  # of a K step
_UNIT_BYTES = 4096  # of a warp's part of the epilogue
_MOST_SPLITS = {
    "hopper": {"128x64": 2, "64x128": 2, "64x64": 4},
    "conv": {"64x128": 4, "64x64": 8, "128x256_vectors_split": 2},
}
"""Blocks that share out K, as the kernels say."""
_BARRIER_BYTES = 8


@dataclass(frozen=True)
class Hopper:
    """One kernel and one way of sharing work; times in nanoseconds, see runtime/gemm_hopper.h."""

    type: str
    tile: tuple[int, int]  # rows of X, output features
    stages: int
    turns: bool
    pair: str
    splits: int
    step_ns: float
    tile_ns: float
    fixed_ns: float
    vectors: bool = False  # X comes by copies of threads: kernels/hopper_vectors.cuh
    transposed: bool = False  # W is the left operand: kernels/gemm_transposed.cu
    convolution: bool = False  # DeftConv's

    @property
    def source(self) -> str:
        """The kernel's file."""
        return "gemm_transposed.cu" if self.transposed else "gemm_hopper.cu"

    @property
    def entry(self) -> str:
        """The function's name in the machine code."""
        return f"{self._prefix}_{self.type}_{self._code}"

    @property
    def name(self) -> str:
        """What users and result files call it."""
        pair = "" if self.pair == "none" else f"_{self.pair}"
        splits = "" if self.splits == 1 else f"_split{self.splits}"
        operands = self.type if self.convolution else f"{self.type}_{self.type}"
        return f"{operands}_hopper_{self._tile}{pair}{splits}"

    @property
    def _tile(self) -> str:
        ways = ("turns", "vectors", "transposed")
        return f"{self.tile[0]}x{self.tile[1]}{''.join(f'_{way}' for way in ways if getattr(self, way))}"

    @property
    def _prefix(self) -> str:
        return "conv" if self.convolution else "hopper"

    @property
    def _code(self) -> str:  # copies of vectors leave the fewer stages where K is shared out
        return f"{self._tile}{'_split' if self.vectors and self.splits > 1 else ''}"

    @property
    def warpgroups(self) -> int:
        """Warpgroups that multiply."""
        return self.tile[1] // 64 if self.transposed else self.tile[0] // 64

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return threads_of(self.warpgroups)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory, as laid out in kernels/hopper_work.cuh."""
        y_bytes = 2 * self.tile[0] * self.tile[1] if self.transposed else 0
        most_splits = _MOST_SPLITS[self._prefix].get(self._code, 1)
        return shared_bytes_of(self.tile, self.stages, self.warpgroups, most_splits, y_bytes)

    @property
    def blocks_per_multiprocessor(self) -> int:
        """Blocks that a multiprocessor has room for."""
        return blocks_of(self.shared_bytes)


def threads_of(warpgroups: int) -> int:
    """Threads of a block of so many warpgroups that multiply, with those that load."""
    return 128 * warpgroups + (128 if warpgroups > 1 else 64)


def blocks_of(shared_bytes: int) -> int:
    """Blocks that the shared memory of a multiprocessor has room for, 1 KiB each lost to the system."""
    return 228 * 1024 // (shared_bytes + 1024)


def shared_bytes_of(tile: tuple[int, int], stages: int, warpgroups: int, most_splits: int = 1, y_bytes: int = 0) -> int:
    """Dynamic shared memory of a block, as laid out in kernels/hopper_work.cuh; y_bytes: all of Y's tile, if kept."""
    stage = sum(tile) * _ROW_BYTES
    shares = 64 * tile[1] // most_splits * (most_splits - 1)
    own = y_bytes or 4 * warpgroups * max(_UNIT_BYTES, shares)
    return stages * stage + own + (2 * stages + 3) * _BARRIER_BYTES


def kernels(architectures: list[int] | None = None, convolution: bool = False) -> list[Hopper]:
    """Return the kernels for DeftGemm or DeftConv, if their architecture is asked for."""
    if architectures is not None and _ARCHITECTURE not in architectures:
        return []
    table = json.loads(TUNING.read_text())["conv_hopper" if convolution else "gemm_hopper"]
    return [
        Hopper(type=name, convolution=convolution, **row | {"tile": tuple(row["tile"])})
        for row in table
        for name in ("fp16", "bf16")
    ]


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    return compiled(kernels(architectures), cache)


def compiled(members: list[Hopper], cache: Path) -> list[Row]:
    """Rows of `members` with their machine code."""
    if not members:
        return []
    sources = sorted({kernel.source for kernel in members})
    codes = {source: compile_cuda.compile_cached(source, _TARGET, cache) for source in sources}
    return [_row(kernel, codes[kernel.source]) for kernel in members]


def _row(kernel: Hopper, code: bytes) -> Row:
    image = Image(kernel.name, kernel.entry, _ARCHITECTURE, code, kernel.shared_bytes, kernel.threads)
    flags = [str(flag).lower() for flag in (kernel.turns, kernel.vectors, kernel.transposed)]
    sharing = (flags[0], _PAIRS[kernel.pair], kernel.splits, *flags[1:])
    times = (kernel.step_ns, kernel.tile_ns, kernel.fixed_ns)
    return Row(image, (element_type(kernel.type), *kernel.tile, *sharing, kernel.blocks_per_multiprocessor, *times))
