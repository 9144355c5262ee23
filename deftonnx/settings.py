"""What a run is asked to do, with the defaults and the combinations that make no sense refused in one sentence."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from deftonnx.elimination.choice import CRITERIA
from deftonnx.elimination.groups import Granularity
from deftonnx.elimination.refit import NEEDS_DATA, REFITS
from deftonnx.errors import UsageError
from deftonnx.formats import GEMM_FORMAT_NAMES, FormatError, get_format
from deftonnx.formats.gemm_function import ANY_KERNEL, PACKED
from deftonnx.runtime.gpus import known_gpu

IO_TYPES = ("keep", "float16", "bfloat16")
TARGETS = ("any", "cpu", "cuda")
PRECISIONS = ("keep", "16-bit")
DECIDERS = ("auto", "measurement", "model", "nothing")
AUTO, FASTEST = "auto", "fastest"
"""Granularities chosen layer by layer: fine enough to keep the accuracy, or whatever takes the least time."""
DEFAULT_DENSITY = 0.75
FP32 = "fp32"
"""The format of a weight that is not packed."""
AUTOMATIC = ("deft8:auto", "deft8")
"""Formats that choose their exponent bits layer by layer."""


@dataclass(frozen=True)
class Settings:
    """Options of `optimize`; None means 'choose for me'."""

    density: float | None = None
    alpha: float | None = None
    criterion: str | None = None
    refit: str | None = None
    granularity: str = AUTO
    target: str = "any"
    nodes_to_exclude: tuple[str, ...] = ()
    op_types_to_exclude: tuple[str, ...] = ()
    keep_first: bool = True
    keep_last: bool = True
    absorb: bool = True
    portable: bool = False
    unpack: bool = True
    format: str = FP32
    io_types: str = "keep"
    precision: str = "keep"
    decide_by: str = "auto"
    batches: tuple[int, ...] = (1, 64)
    gpu: str | None = None
    calib_samples: int = 512
    seed: int = 0

    @property
    def compute(self) -> str:
        """What DeftGemm nodes say of the kernels that may serve."""
        return ANY_KERNEL if self.unpack else PACKED

    @property
    def may_pack(self) -> bool:
        """Whether the result may have nodes or types that opsets before 13 have not."""
        asked = self.format != FP32 or self.precision != "keep" or self.target == "cuda"
        return (asked and not self.portable) or self.io_types == "bfloat16"

    def resolve(self, has_data: bool) -> Settings:
        """The same with every choice made; density None then means lossless rewrites only."""
        self._check()
        density, criterion, refit = self.density, self.criterion, self.refit
        if self.alpha is not None:
            if criterion not in (None, "correlation"):
                raise UsageError(f"--alpha is the threshold of --criterion correlation, not of {criterion}")
            if density is not None:
                raise UsageError("--density and --alpha exclude each other")
            criterion = "correlation"
        if not has_data:
            asked = density not in (None, 1) or criterion is not None or refit is not None
            if criterion == "obs" or (criterion is None and asked):
                raise UsageError(
                    "criterion obs needs calibration data: pass --calib-data, or --criterion correlation --refit scale"
                )
            if refit in NEEDS_DATA:
                raise UsageError(f"refit {refit} needs calibration data: pass --calib-data, or --refit scale")
            if not asked:
                return replace(self, density=None, criterion="obs", refit="none")
        if density is None and self.alpha is None:
            density = DEFAULT_DENSITY
        return replace(
            self,
            density=density,
            criterion=criterion or "obs",
            refit=refit or ("least-squares" if has_data else "scale"),
        )

    def _check(self) -> None:
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"--density {self.density:g} is not above 0 and at most 1")
        if self.alpha is not None and not -1 <= self.alpha <= 1:
            raise UsageError(f"--alpha {self.alpha:g} is not a correlation between -1 and 1")
        for option, value, known in (
            ("criterion", self.criterion, CRITERIA),
            ("refit", self.refit, REFITS),
            ("target", self.target, TARGETS),
            ("--io-types", self.io_types, IO_TYPES),
            ("--precision", self.precision, PRECISIONS),
            ("--decide-by", self.decide_by, DECIDERS),
        ):
            if value is not None and value not in known:
                raise UsageError(f"{option} '{value}' is not one of {', '.join(known)}")
        check_format(self.format, "--format")
        if self.portable and self.format != FP32:
            raise UsageError(f"--format {self.format} needs ai.deftonnx nodes, which --portable forbids")
        if self.granularity == FASTEST:
            self._check_fastest()
        elif self.granularity != AUTO:
            Granularity.parse(self.granularity)
        if self.gpu is not None:
            known_gpu(self.gpu)
        for option in ("nodes_to_exclude", "op_types_to_exclude"):
            names = getattr(self, option)
            if isinstance(names, str):
                raise UsageError(f"{option} '{names}' is one string: give a sequence of them")
        if not self.batches or min(self.batches) < 1:
            raise UsageError("--batch takes numbers of at least 1")
        if self.calib_samples < 1:
            raise UsageError(f"--calib-samples {self.calib_samples} is not at least 1")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is negative")
        for pattern in self.nodes_to_exclude:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"--nodes-to-exclude '{pattern}' is not a regular expression: {error}") from error

    def _check_fastest(self) -> None:
        """Refuse what leaves no times to compare."""
        if self.target != "cuda":
            raise UsageError(
                f"--granularity fastest compares times on a GPU: it needs --target cuda, not {self.target}"
            )
        if self.portable:
            raise UsageError("--granularity fastest compares times of ai.deftonnx nodes, which --portable forbids")
        if self.decide_by == "nothing":
            raise UsageError("--granularity fastest compares times, which --decide-by nothing does not look at")
        if self.alpha is not None:
            raise UsageError("--granularity fastest compares times at one density, which --alpha does not give")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_format(name: str, what: str) -> None:
    """Raise UsageError, in a sentence about `what`, if `name` is no format."""
    if name in (FP32, *AUTOMATIC):
        return
    try:
        get_format(name)
    except FormatError as error:
        known = ", ".join((FP32, *GEMM_FORMAT_NAMES, AUTOMATIC[0]))
        raise UsageError(f"{what} '{name}' is not one of {known}") from error
