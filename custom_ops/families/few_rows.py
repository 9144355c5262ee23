"""kernels/gemm_small_m.cu: few rows of X before compute capability 9.0, where gemm_stream.cu takes over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compile_cuda
from images import Image, Row, Table, element_type

TABLE = Table("gemm_few_rows.h", "FewRowsImage", "kFewRowsImages")
_SOURCE = "gemm_small_m.cu"
_ARCHITECTURES = (80,)
_THREADS = 256
# X's type, W's type
_OPERANDS = [("fp16", "fp16"), ("bf16", "bf16"), ("fp16", "u8"), ("bf16", "u8")]


@dataclass(frozen=True)
class FewRows:
    """One kernel for 8 * m_tiles rows of X or fewer; a block makes 16 * row_tiles output features."""

    architecture: int
    x_type: str
    w_type: str
    m_tiles: int
    row_tiles: int

    @property
    def entry(self) -> str:
        """The function's name in the machine code."""
        return f"{self.x_type}_{self.w_type}_{self.m_tiles}_{self.row_tiles}"

    @property
    def name(self) -> str:
        """What users and result files call it."""
        return f"{self.x_type}_{self.w_type}_small_m_{8 * self.m_tiles}x{16 * self.row_tiles}"


def kernels(architectures: list[int] | None = None) -> list[FewRows]:
    """Return the kernels for the given compute capabilities, or for all."""
    return [
        FewRows(architecture, *operand, m_tiles, row_tiles)
        for architecture in architectures or _ARCHITECTURES
        if architecture in _ARCHITECTURES
        for operand in _OPERANDS
        for m_tiles in (1, 2)
        for row_tiles in (1, 2, 4)
    ]


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    members = kernels(architectures)
    codes = compile_cuda.compile_for((kernel.architecture for kernel in members), _SOURCE, cache, each)
    return [_row(kernel, codes[kernel.architecture]) for kernel in members]


def _row(kernel: FewRows, code: bytes) -> Row:
    image = Image(kernel.name, kernel.entry, kernel.architecture, code, 0, _THREADS)
    types = (element_type(kernel.x_type), element_type(kernel.w_type))
    return Row(image, (*types, 8 * kernel.m_tiles, 16 * kernel.row_tiles))
