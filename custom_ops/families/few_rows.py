"""The kernels for few rows of X: kernels/gemm_small_m.cu and gemm_small_m_cluster.cu."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("gemm_few_rows.h", "FewRowsImage", "kFewRowsImages")
_THREADS = 256
# X's type, W's type, bfloat16 terms of X
_OPERANDS = [("fp16", "fp16", 1), ("bf16", "bf16", 1), ("fp16", "u8", 1), ("bf16", "u8", 1), ("fp16", "u8", 2)]


@dataclass(frozen=True)
class FewRows:
    """One kernel for 8 * m_tiles rows of X or fewer; a block makes 16 * row_tiles output features."""

    architecture: int
    x_type: str
    w_type: str
    terms: int
    m_tiles: int
    row_tiles: int
    cluster: bool = False

    @property
    def source(self) -> str:
        """The file in kernels/."""
        return "gemm_small_m_cluster.cu" if self.cluster else "gemm_small_m.cu"

    @property
    def entry(self) -> str:
        """The function's name in the machine code."""
        name = f"{self.x_type}_{self.w_type}_{self.terms}_{self.m_tiles}"
        return name if self.cluster else f"{name}_{self.row_tiles}"

    @property
    def name(self) -> str:
        """What users and result files call it."""
        kind = "small_m_cluster" if self.cluster else "small_m"
        return f"{self.x_type}_{self.w_type}_{kind}_{8 * self.m_tiles}x{16 * self.row_tiles}"

    @property
    def step(self) -> int:
        """Input features a step of a block: those of 128 bytes of W."""
        return 128 if self.w_type == "u8" else 64

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: four stages of 128 rows of W and of the rows of X."""
        return 4 * (128 * 128 + 8 * self.m_tiles * self.step * 2) if self.cluster else 0


def kernels(architectures: list[int] | None = None) -> list[FewRows]:
    """Return the kernels for the given compute capabilities, or for all."""
    tiles: list[tuple[int, int, bool]] = [(m, rows, False) for m in (1, 2) for rows in (1, 2, 4)]
    clusters = [(m, 8, True) for m in (1, 2)]
    return [
        FewRows(architecture, *operand, *tile)
        for architecture in architectures or ARCHITECTURES
        for operand in _OPERANDS
        for tile in tiles + (clusters if architecture >= 90 else [])
    ]


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    members = kernels(architectures)
    sources = list(dict.fromkeys((kernel.source, f"{kernel.architecture}") for kernel in members))
    compiled = each(partial(compile_cuda.compile_cached, cache=cache), *zip(*sources, strict=True))
    code = dict(zip(sources, compiled, strict=True))
    return [_row(kernel, code[kernel.source, f"{kernel.architecture}"]) for kernel in members]


def _row(kernel: FewRows, code: bytes) -> Row:
    image = Image(kernel.name, kernel.entry, kernel.architecture, code, kernel.shared_bytes, _THREADS)
    types = (element_type(kernel.x_type), element_type(kernel.w_type), kernel.terms, str(kernel.cluster).lower())
    return Row(image, (*types, 8 * kernel.m_tiles, 16 * kernel.row_tiles, kernel.step))
