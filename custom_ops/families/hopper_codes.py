"""kernels/gemm_hopper_codes.cu, in the tiles and ways of sharing work that tuning/sm90.json lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compile_cuda
from images import Image, Row, Table, element_type

from families.hopper import TUNING, blocks_of, threads_of

TABLE = Table("gemm_hopper_codes.h", "HopperCodesImage", "kHopperCodesImages")
_SOURCE, _TARGET, _ARCHITECTURE = "gemm_hopper_codes.cu", "90a", 90
_X_BYTES, _W_BYTES = 128, 64  # of a row in a K step
_UNIT_BYTES = 4096  # of a warp's part of the epilogue
# blocks that share out K, as the kernels say
_MOST_SPLITS = {"256x128": 2, "192x128_split": 2, "128x128": 2, "64x64": 4}
_BARRIER_BYTES = 8
_CODES = {"shifted": "kShifted", "e4": "kE4", "e5": "kE5"}
# X's type, how codes are unpacked
_OPERANDS = [("fp16", "shifted"), ("fp16", "e4"), ("fp16", "e5"), ("bf16", "shifted")]


@dataclass(frozen=True)
class HopperCodes:
    """One kernel and one way of sharing work; times in nanoseconds, see runtime/gemm_hopper_codes.h."""

    type: str
    codes: str  # of _CODES
    tile: tuple[int, int]  # rows of X, output features
    stages: int
    pair: bool
    splits: int
    step_ns: float
    shifted_ns: float  # a step whose codes are unpacked by shifts
    tile_ns: float
    fixed_ns: float
    halves: bool = False  # two warpgroups share out K

    @property
    def entry(self) -> str:
        """The function's name in the machine code."""
        return f"hopper_{self.type}_{self.codes}_{self._code}"

    @property
    def name(self) -> str:
        """What users and result files call it."""
        sharing = ("_halves" if self.halves else "") + ("_columns" if self.pair else "")
        sharing += f"_split{self.splits}" if self.splits > 1 else ""
        return f"{self.type}_u8_hopper_{self.tile[0]}x{self.tile[1]}{sharing}"

    @property
    def _code(self) -> str:  # sums of 192 rows leave the fewer stages where K is shared out
        ending = "_halves" if self.halves else "_split" if self.tile[0] == 192 and self.splits > 1 else ""
        return f"{self.tile[0]}x{self.tile[1]}{ending}"

    @property
    def warpgroups(self) -> int:
        """Warpgroups that multiply."""
        return 2 if self.halves else self.tile[1] // 64

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return threads_of(self.warpgroups)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory, as laid out in the kernel."""
        stages = self.stages * (self.tile[0] * _X_BYTES + self.tile[1] * _W_BYTES)
        most = _MOST_SPLITS.get(self._code, 1)
        warp = max(_UNIT_BYTES, 64 * self.tile[0] // most * (most - 1))
        return stages + 4 * self.warpgroups * warp + (2 * self.stages + 3) * _BARRIER_BYTES

    @property
    def blocks_per_multiprocessor(self) -> int:
        """Blocks that a multiprocessor has room for."""
        return blocks_of(self.shared_bytes)


def kernels(architectures: list[int] | None = None) -> list[HopperCodes]:
    """Return the kernels, if their architecture is asked for."""
    if architectures is not None and _ARCHITECTURE not in architectures:
        return []
    table = json.loads(TUNING.read_text())["gemm_hopper_codes"]
    return [
        HopperCodes(type=x_type, codes=codes, **row | {"tile": tuple(row["tile"])})
        for row in table
        for x_type, codes in _OPERANDS
    ]


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    members = kernels(architectures)
    if not members:
        return []
    code = compile_cuda.compile_cached(_SOURCE, _TARGET, cache)
    return [_row(kernel, code) for kernel in members]


def _row(kernel: HopperCodes, code: bytes) -> Row:
    image = Image(kernel.name, kernel.entry, _ARCHITECTURE, code, kernel.shared_bytes, kernel.threads)
    operands = (element_type(kernel.type), f"HopperCodes::{_CODES[kernel.codes]}")
    step_ns = kernel.shifted_ns if kernel.codes == "shifted" else kernel.step_ns
    sharing = (str(kernel.pair).lower(), kernel.splits, kernel.blocks_per_multiprocessor)
    return Row(image, (*operands, *kernel.tile, *sharing, step_ns, kernel.tile_ns, kernel.fixed_ns))
