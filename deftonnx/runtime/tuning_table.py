"""The table of times measured on the user's own GPU: where it lies, what is in it, whether the library will use it.

The library reads it when a session is made (custom_ops/runtime/measured_times.cpp): a kernel's estimate is multiplied
by measured / estimated time at the nearest measured shape.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deftonnx import model_file
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.manifest import Manifest

VARIABLE = "DEFTONNX_TUNING"
SCHEMA = "deftonnx-tuning"
SCHEMA_VERSION = 1

Point = tuple[int, int, int, float, float]
"""M, K, N, measured nanoseconds, the kernel's own estimate."""


def table_path(capability: int) -> Path | None:
    """Where the library looks for the table of a GPU: the file that DEFTONNX_TUNING names, else one in the user's cache
    folder; None if that variable is set and empty."""
    if (chosen := os.environ.get(VARIABLE)) is not None:
        return Path(chosen) if chosen else None
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "deftonnx" / f"sm{capability}.json"


def write_table(
    path: Path, device: Device, manifest: Manifest, kernels: Mapping[str, Sequence[Point]], facts: Mapping[str, Any]
) -> None:
    """Write a table atomically. `facts` go along for people; the library does not read them."""
    content = {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "library": manifest.fingerprint,
        "architecture": device.capability,
        "multiprocessors": device.multiprocessors,
        "measured_on": facts,
        "kernels": kernels,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # a line for each kernel: people compare such files
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(points)}" for name, points in sorted(kernels.items()))
    head = json.dumps(content | {"kernels": None}, indent=1).removesuffix("null\n}")
    model_file.write_text(path, f"{head}{{\n{rows}\n }}\n}}\n")


def table_state(device: Device, manifest: Manifest) -> dict[str, str | None] | None:
    """The table's path, and why it is not used if it is not; None where there is none."""
    path = table_path(device.capability)
    if path is None or not path.exists():
        return None
    problem = None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["library"] != manifest.fingerprint:
            problem = "it was made with another build of the library: run 'deftonnx tune' again"
        elif (content["architecture"], content["multiprocessors"]) != (device.capability, device.multiprocessors):
            problem = "it was made on another GPU"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"it cannot be read: {error}"
    return {"path": str(path), "problem": problem}
