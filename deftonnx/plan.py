"""The plan: the record of every decision about a model, as versioned JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from deftonnx.errors import UsageError

FORMAT = "deftonnx-plan"
VERSION = 1
METADATA_KEY = "deftonnx.plan"


@dataclass
class LayerPlan:
    """What one layer keeps.

    `kept` lists the kept units of every group (see `granularity`); None leaves the choice to the run that reads the
    plan. `error` is ‖Y − Y*‖²/‖Y* − mean‖² on the calibration rows. `reason` says why nothing is eliminated.
    `format` is that of the weights, None leaves it to the run; `format_error` is what packing adds to `error`, and
    `format_reason` says why a layer stays in fp32 where another format was asked for. Layers with one name in `joined`
    are that DeftMlp node.
    """

    name: str
    op: str
    K: int | None = None
    N: int | None = None
    groups: int = 1
    granularity: str | None = None
    density: float | None = None
    criterion: str | None = None
    refit: str | None = None
    kept: list[list[int]] | None = None
    error: float | None = None
    reason: str | None = None
    format: str | None = None
    format_error: float | None = None
    format_reason: str | None = None
    joined: str | None = None


@dataclass
class Plan:
    """The decisions for one model and the settings they were made with."""

    settings: dict[str, Any] = field(default_factory=dict)
    layers: list[LayerPlan] = field(default_factory=list)

    def to_json(self, indent: int | None = None) -> str:
        """The plan as JSON, keys sorted, fields that say nothing left out."""
        layers = [{k: v for k, v in asdict(layer).items() if v is not None} for layer in self.layers]
        content = {"format": FORMAT, "version": VERSION, "settings": self.settings, "layers": layers}
        return json.dumps(content, indent=indent, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, origin: str = "the plan") -> Plan:
        """Read a plan, refusing what is none or is of a later version."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{origin} is not JSON: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UsageError(f"{origin} is not a DeftONNX plan")
        if content.get("version") != VERSION:
            raise UsageError(f"{origin} has plan version {content.get('version')}, this program reads {VERSION}")
        try:
            layers = [_layer(entry, origin) for entry in content["layers"]]
            return cls(dict(content.get("settings", {})), layers)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{origin} has a layer entry that cannot be read: {error}") from error

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """The plan in a file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"plan '{path}' cannot be read: {error}") from error
        return cls.from_json(text, f"plan '{path}'")


def _layer(entry: dict[str, Any], origin: str) -> LayerPlan:
    """One entry, its fields checked: a plan may have been written by hand."""
    layer = LayerPlan(**entry)
    text = dict.fromkeys(("granularity", "criterion", "refit", "reason", "format", "format_reason"), (str, type(None)))
    types = {"name": (str,), "op": (str,), **text, "density": (int, float, type(None)), "kept": (list, type(None))}
    for key, allowed in types.items():
        if type(getattr(layer, key)) not in allowed:
            raise UsageError(f"{origin}: field '{key}' of layer '{layer.name}' cannot be {getattr(layer, key)!r}")
    if layer.density is not None and not 0 < layer.density <= 1:
        raise UsageError(f"{origin}: density {layer.density:g} of layer '{layer.name}' is not above 0 and at most 1")
    if any(not isinstance(row, list) or not all(type(unit) is int for unit in row) for row in layer.kept or []):
        raise UsageError(f"{origin}: the kept units of layer '{layer.name}' are not lists of numbers")
    return layer


def earlier_plan(model: onnx.ModelProto) -> Plan | None:
    """The plan that an earlier run left in a model's metadata."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return Plan.from_json(entry.value, "the plan in the model's metadata")
    return None
