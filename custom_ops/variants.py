"""The kernel variants that are compiled ahead of time, read from the tables in tuning/."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TUNING = Path(__file__).parent / "tuning"
ARCHITECTURES = (80, 90, 100, 120)  # machine code of 80 also runs on 86 and 89

# operands of a table row → (X's type, W's type, bfloat16 terms of X) of its variants
_OPERANDS: dict[str, list[tuple[str, str, int]]] = {
    "native": [("fp16", "fp16", 1), ("bf16", "bf16", 1)],
    "deft8": [("fp16", "u8", 1), ("bf16", "u8", 1)],
    "deft8_split": [("fp16", "u8", 2), ("fp32", "u8", 3)],
    "split": [("fp16", "bf16", 2), ("fp32", "bf16", 3)],
}


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

    @property
    def name(self) -> str:
        """What users and result files call it."""
        tile = "x".join(map(str, self.tile))
        return f"{self.x_type}_{self.w_type}_{self.loader}_{tile}"

    @property
    def compute_type(self) -> str:
        """The tensor core's operand type."""
        return "fp16" if self.x_type == "fp16" and self.terms == 1 else "bf16"

    @property
    def uses_maps(self) -> bool:
        """Whether tiles come through tensor maps."""
        return self.loader in ("tma", "tma_kept")

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
        }
        multiples = {"scale", "bias", "kept", "residual", "y", "padded_K"}
        multiples |= set() if self.uses_maps else {"x", "w"}
        multiples |= set() if self.loader == "element" else {"N", "K", "features"}
        return types | dict.fromkeys(constants, "constexpr"), constants, multiples


def load_variants(architectures: list[int] | None = None) -> list[Variant]:
    """Return the variants of the given compute capabilities (80 for 8.0), or of all that have a table."""
    variants = []
    for path in sorted(TUNING.glob("sm*.json")):
        table = json.loads(path.read_text())
        if architectures is not None and table["architecture"] not in architectures:
            continue
        for row in table["gemm_tensor_core"]:
            tile = tuple(row["tile"])
            options = {k: row[k] for k in ("operands", "loader", "swap", "warps", "stages", "step_ns", "fixed_ns")}
            for x, w, terms in _OPERANDS[row["operands"]]:
                variants.append(Variant(table["architecture"], x_type=x, w_type=w, terms=terms, tile=tile, **options))
    return variants


@dataclass(frozen=True)
class SmallM:
    """One kernel of gemm_small_m.cu, or of gemm_small_m_cluster.cu: for 8 * m_tiles rows of X or fewer.

    row_tiles: 16 of the output features a block makes, each.
    """

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


def small_m_kernels(architectures: list[int] | None = None) -> list[SmallM]:
    """Return the kernels for few rows for the given compute capabilities, or for all."""
    operands = [*_OPERANDS["native"], *_OPERANDS["deft8"], _OPERANDS["deft8_split"][0]]
    tiles: list[tuple[int, int, bool]] = [(m, rows, False) for m in (1, 2) for rows in (1, 2, 4)]
    clusters = [(m, 8, True) for m in (1, 2)]
    return [
        SmallM(architecture, *operand, *tile)
        for architecture in ARCHITECTURES
        if architectures is None or architecture in architectures
        for operand in operands
        for tile in tiles + (clusters if architecture >= 90 else [])
    ]
