"""kernels/round_rows.cu: X rounded to FP8 values for nodes of format fp8, as codes where tensor cores take them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_cuda
from images import ARCHITECTURES, Image, Row, Table, element_type

TABLE = Table("round_rows.h", "RoundRowsImage", "kRoundRowsImages")
_SOURCE = "round_rows.cu"
_ARCHITECTURES = (75, *ARCHITECTURES)
_FIRST_WITH_CODES = 90
_THREADS = 256


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the kernels and return their rows."""
    chosen = [a for a in _ARCHITECTURES if architectures is None or a in architectures]
    codes = compile_cuda.compile_for(chosen, _SOURCE, cache, each)
    return [
        _row(architecture, code, x_type, to)
        for architecture, code in codes.items()
        for x_type in ("fp32", "fp16", "bf16")
        for to in (("codes", "bf16") if architecture >= _FIRST_WITH_CODES else ("bf16",))
    ]


def _row(architecture: int, code: bytes, x_type: str, to: str) -> Row:
    entry = f"rows_to_{to}_{x_type}"
    image = Image(entry, entry, architecture, code, 0, _THREADS)
    return Row(image, (element_type(x_type), f"Rounded::{'kCodes' if to == 'codes' else 'kBfloat16'}"))
