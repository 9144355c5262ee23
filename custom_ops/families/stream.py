"""kernels/gemm_stream.cu: few rows of X on compute capability 9.0 and newer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("gemm_stream.h", "StreamImage", "kStreamImages")
_SOURCE = "gemm_stream.cu"
_SHARED_BYTES = {90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # the most a block may have
# X's type, W's type
_OPERANDS = [("fp16", "fp16"), ("bf16", "bf16"), ("fp16", "u8"), ("bf16", "u8")]


@dataclass(frozen=True)
class Stream:
    """One kernel for 8 * m_tiles rows of X or fewer."""

    architecture: int
    x_type: str
    w_type: str
    m_tiles: int

    @property
    def entry(self) -> str:
        """The function's name in the machine code."""
        return f"{self.x_type}_{self.w_type}_{self.m_tiles}"

    @property
    def name(self) -> str:
        """What users and result files call it."""
        return f"{self.x_type}_{self.w_type}_stream_{8 * self.m_tiles}"

    @property
    def threads(self) -> int:
        """The most a block may have: a warp for W, four for X, and those that multiply."""
        return 32 * (5 + (8 if self.m_tiles > 2 else 14))


def kernels(architectures: list[int] | None = None) -> list[Stream]:
    """Return the kernels for the given compute capabilities, or for all that have these instructions."""
    return [
        Stream(architecture, *operand, m_tiles)
        for architecture in architectures or ARCHITECTURES
        if architecture in _SHARED_BYTES
        for operand in _OPERANDS
        for m_tiles in (1, 2, 4)
    ]


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    members = kernels(architectures)
    codes = compile_cuda.compile_for((kernel.architecture for kernel in members), _SOURCE, cache, each)
    return [_row(kernel, codes[kernel.architecture]) for kernel in members]


def _row(kernel: Stream, code: bytes) -> Row:
    shared_bytes = _SHARED_BYTES[kernel.architecture]
    image = Image(kernel.name, kernel.entry, kernel.architecture, code, shared_bytes, kernel.threads)
    return Row(image, (element_type(kernel.x_type), element_type(kernel.w_type), 8 * kernel.m_tiles))
