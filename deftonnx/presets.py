"""Named combinations of options for NVIDIA GPUs. What the caller sets as well goes before the preset."""

from __future__ import annotations

from typing import Any

from deftonnx.errors import UsageError

_SIXTEEN_BITS = {"target": "cuda", "format": "half", "precision": "16-bit"}
PRESETS: dict[str, dict[str, Any]] = {
    "dense16": {**_SIXTEEN_BITS, "density": 1.0},
    "balanced": {**_SIXTEEN_BITS, "density": 0.75},
    "fast": {**_SIXTEEN_BITS, "density": 0.5, "format": "deft8:auto"},
}
"""dense16 eliminates nothing: 16 bits, packed weights and fused operators, equal to the original but for rounding.
balanced keeps three quarters of the features of every layer but the first and last, fast a half with weights in
8 bits; both need calibration data."""


def with_preset(name: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options of preset `name` overlaid with `options`."""
    if name is None:
        return options
    if name not in PRESETS:
        raise UsageError(f"preset '{name}' is not one of {', '.join(PRESETS)}")
    return {**PRESETS[name], **options}
