"""The figures of one run, and their JSON form."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from deftonnx.evaluation import Score
from deftonnx.layers import Refusal
from deftonnx.version import __version__

SCHEMA = "deftonnx-report"
SCHEMA_VERSION = 1


@dataclass
class Size:
    """A model's size: bytes of the file and of its weights, parameters, multiply-adds of its linear layers for one
    sample, and the milliseconds of each timing round for one sample on this CPU."""

    bytes: int
    parameters: int
    macs: int
    weight_bytes: int = 0
    latency_ms: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; latency as median, min and max."""
        latency = None
        if self.latency_ms:
            rounds = [
                round(v, 5) for v in (statistics.median(self.latency_ms), min(self.latency_ms), max(self.latency_ms))
            ]
            latency = dict(zip(("median", "min", "max"), rounds, strict=True))
        return {
            "bytes": self.bytes,
            "weight_bytes": self.weight_bytes,
            "parameters": self.parameters,
            "macs": self.macs,
            "latency_ms": latency,
        }


@dataclass
class LayerRow:
    """One layer before and after. `form` says how its elimination is written: absorbed by the producer, Gather, Slice,
    KeptConv, 'kept blocks' where a kernel of ours walks them, 'fewer outputs' where only its readers were reduced,
    or 'all kept' where it was only packed. `format` is that of a packed weight, `format_error` what packing costs on
    the calibration rows, measured as `error` is. The bytes are those of the layer's weights and biases, `output_type`
    is that of a packed layer's outputs. `us_before` are the microseconds, by batch size, of all of the layer by ONNX
    Runtime's own operators in the same type, `us_after` those of the layer as it is written; `timed` says whether they
    were measured or estimated. `kernel` is the library's choice at the largest batch size, where it can say. `joined`
    is the DeftMlp node that computes the layer with others."""

    name: str
    op: str
    K: int
    kept: int
    granularity: str | None
    form: str
    error: float | None
    macs_before: int
    macs_after: int
    format: str | None = None
    format_error: float | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    output_type: str | None = None
    kernel: str | None = None
    timed: str | None = None
    us_before: dict[int, float] | None = None
    us_after: dict[int, float] | None = None
    joined: str | None = None

    @property
    def changed(self) -> bool:
        """True where something was done to the layer."""
        return bool(self.granularity or self.format or self.output_type) or self.macs_after != self.macs_before


@dataclass
class Report:
    """Everything about one run. `gpu_ms`: milliseconds a run before and after, by batch size, on this machine's GPU."""

    model: str
    settings: dict[str, Any]
    before: Size
    after: Size
    layers: list[LayerRow]
    left_alone: list[Refusal]
    warnings: list[str]
    left_unpacked: list[Refusal] = field(default_factory=list)
    left_in_float32: list[Refusal] = field(default_factory=list)
    left_apart: list[Refusal] = field(default_factory=list)
    output: str | None = None
    accuracy: Score | None = None
    accuracy_on: str | None = None
    gpu_ms: dict[int, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def improved(self) -> bool:
        """True where the result has fewer multiply-adds, fewer parameters or smaller weights."""
        before, after = self.before, self.after
        return (
            after.macs < before.macs or after.parameters < before.parameters or after.weight_bytes < before.weight_bytes
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the schema is versioned."""
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "deftonnx": __version__,
            "model": self.model,
            "output": self.output,
            "settings": self.settings,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "accuracy": None if self.accuracy is None else {**self.accuracy.to_dict(), "on": self.accuracy_on},
            "gpu_ms": {str(batch): list(times) for batch, times in self.gpu_ms.items()},
            "layers": [vars(row) for row in self.layers],
            "left_alone": [vars(refusal) for refusal in self.left_alone],
            "left_unpacked": [vars(refusal) for refusal in self.left_unpacked],
            "left_in_float32": [vars(refusal) for refusal in self.left_in_float32],
            "left_apart": [vars(refusal) for refusal in self.left_apart],
            "warnings": self.warnings,
            "seconds": round(self.seconds, 2),
        }

    def to_json(self) -> str:
        """The report as indented JSON."""
        return to_json(self.to_dict())


def to_json(content: Any) -> str:
    """Indented JSON. What is not a number (the loss of a model that gives NaN) is null, as JSON has no word for it."""
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
