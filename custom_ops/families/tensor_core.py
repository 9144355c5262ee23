"""The Triton kernel kernels/gemm_tensor_core.py in the variants that the tables in tuning/ list."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import compile_triton
from compile_triton import CompiledKernel, TensorBox
from images import Image, Row, Table, element_type

TABLE = Table("gemm_tensor_core.h", "TensorCoreImage", "kTensorCoreImages")
TUNING = Path(__file__).parents[1] / "tuning"

# operands of a table row → (X's type, W's type, bfloat16 terms of X) of its variants
_OPERANDS: dict[str, list[tuple[str, str, int]]] = {
    "native": [("fp16", "fp16", 1), ("bf16", "bf16", 1)],
    "deft8": [("fp16", "u8", 1), ("bf16", "u8", 1)],
    "deft8_split": [("fp32", "u8", 3)],
    "split": [("fp32", "bf16", 3)],
    "tf32": [(x, w, 1) for x, w in (("bf16", "fp16"), ("fp32", "fp16"), ("fp32", "fp32"))]
    + [(x, "u32", 1) for x in ("fp16", "bf16", "fp32")],
    "tf32_half": [("bf16", "fp16", 1), ("fp32", "fp16", 1)],
}
_CPP_OPERANDS = {
    "native": "kNative",
    "deft8": "kDeft8",
    "deft8_split": "kDeft8",
    "split": "kSplit",
    "tf32": "kTf32",
    "tf32_half": "kTf32",
}
_CPP_LOADERS = {
    "tma": "kTma",
    "aligned": "kAligned",
    "aligned_kept": "kAlignedKept",
    "element": "kElement",
}

_SHARED_MEMORY = {80: 164, 90: 228, 100: 228, 120: 100}  # KiB a multiprocessor has
_RESERVED_SHARED_MEMORY = 1  # KiB a block costs beside its own
_REGISTERS = 65536  # of a multiprocessor
_OTHER_REGISTERS = 64  # of a thread, beside its accumulators


@dataclass(frozen=True)
class Variant:
    """One kernel compiled for one architecture; the times are those of the tuning table, in nanoseconds."""

    architecture: int
    operands: str
    x_type: str
    w_type: str
    terms: int
    loader: str
    tile: tuple[int, int, int]  # rows of X, output features, features a K step
    swap: bool
    warps: int
    stages: int
    step_ns: float
    fixed_ns: float
    apart: bool = False

    @property
    def name(self) -> str:
        """What users and result files call it."""
        tile = "x".join(map(str, self.tile))
        return f"{self.x_type}_{self.w_type}_{self.loader}_{tile}{'_apart' * self.apart}"

    @property
    def compute_type(self) -> str:
        """The tensor core's operand type; fp32 stands for TF32."""
        if self.operands.startswith("tf32"):
            return "fp32"
        return "fp16" if self.x_type == "fp16" and self.terms == 1 else "bf16"

    @property
    def sums_apart(self) -> bool:
        """Whether every K step is summed apart: always where that is not what takes the time."""
        return self.apart or self.terms > 1 or self.operands.startswith("tf32") or not self.uses_maps

    @property
    def uses_maps(self) -> bool:
        """Whether tiles come through tensor maps."""
        return self.loader == "tma"

    def signature(self, arguments: list[str]) -> tuple[dict[str, str], dict[str, Any], set[str]]:
        """Return types, compile-time constants and the arguments that are multiples of 16."""
        m, n, k = self.tile
        types = dict.fromkeys(arguments, "i32")
        types |= dict.fromkeys(("slope", "offset", "low", "high", "accumulator_scale"), "fp32")
        types |= {"scale": "*fp32", "bias": "*fp32", "kept": "*i32", "residual": "*i8", "y": "*i8"}
        types |= {"x": f"*{self.x_type}", "w": f"*{self.w_type}"}
        if self.uses_maps:
            types |= {
                "x": f"tensordesc<{self.x_type}[{m}, {k}]>",
                "w": f"tensordesc<{self.w_type}[{n}, {k}]>",
            }
        constants = {
            "LOADER": self.loader,
            "TERMS": self.terms,
            "DECODE": self.w_type == "u8",
            "COMPUTE": self.compute_type,
            "BLOCK_M": m,
            "BLOCK_N": n,
            "BLOCK_K": k,
            "SWAP": self.swap,
            "APART": self.sums_apart,
        }
        multiples = {"scale", "bias", "kept", "residual", "y", "padded_K"}
        multiples |= set() if self.uses_maps else {"x", "w"}
        multiples |= set() if self.loader == "element" else {"N", "K", "features"}
        return types | dict.fromkeys(constants, "constexpr"), constants, multiples


def variants(architectures: list[int] | None = None) -> list[Variant]:
    """Return the variants of the given compute capabilities (80 for 8.0), or of all that have a table."""
    found = []
    for path in sorted(TUNING.glob("sm*.json")):
        table = json.loads(path.read_text())
        if architectures is not None and table["architecture"] not in architectures:
            continue
        for row in table["gemm_tensor_core"]:
            tile = tuple(row["tile"])
            options = {k: row[k] for k in ("operands", "loader", "swap", "warps", "stages", "step_ns", "fixed_ns")}
            options["apart"] = row.get("apart", False)
            for x, w, terms in _OPERANDS[row["operands"]]:
                found.append(Variant(table["architecture"], x_type=x, w_type=w, terms=terms, tile=tile, **options))
    return found


def rows(architectures: list[int] | None, cache: Path, each: Callable[..., Any]) -> list[Row]:
    """Compile the variants and return their rows."""
    members = variants(architectures)
    compiled = each(partial(compile_triton.compile_cached, cache=cache), members)
    return [_row(variant, kernel) for variant, kernel in zip(members, compiled, strict=True)]


def _row(variant: Variant, kernel: CompiledKernel) -> Row:
    x_box, w_box = kernel.boxes if kernel.boxes else (None, None)
    code = kernel.cubin
    image = Image(variant.name, kernel.entry, variant.architecture, code, kernel.shared_bytes, kernel.threads)
    fields = (
        element_type(variant.x_type),
        element_type(variant.w_type),
        f"Operands::{_CPP_OPERANDS[variant.operands]}",
        variant.terms,
        str(variant.sums_apart).lower(),
        f"Loader::{_CPP_LOADERS[variant.loader]}",
        *variant.tile,
        _box(x_box),
        _box(w_box),
        variant.step_ns,
        variant.fixed_ns,
        _blocks_per_multiprocessor(variant, kernel),
    )
    return Row(image, fields)


def _box(box: TensorBox | None) -> str:
    values = (box.rows, box.columns, box.type, box.element_bytes, box.swizzle) if box else (0, 0, 0, 0, 0)
    return "{" + ", ".join(map(str, values)) + "}"


def _blocks_per_multiprocessor(variant: Variant, kernel: CompiledKernel) -> int:
    """An estimate of how many blocks run at once on a multiprocessor."""
    by_memory = _SHARED_MEMORY[variant.architecture] // (kernel.shared_bytes / 1024 + _RESERVED_SHARED_MEMORY)
    threads = 32 * variant.warps
    registers = variant.tile[0] * variant.tile[1] // threads + _OTHER_REGISTERS
    by_registers = _REGISTERS // (threads * min(registers, 255))
    return max(1, min(int(by_memory), by_registers))
