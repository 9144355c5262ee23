"""What every result file holds beside its figures: date, commit, command and library versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "onnx", "onnxruntime-gpu", "onnx-graphsurgeon")


def commit() -> str:
    """The commit that is checked out, or the one that DEFTONNX_COMMIT names where there is only a copy of the files."""
    if (named := os.environ.get("DEFTONNX_COMMIT")) is not None:
        return named
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str | None:
    """None where a package was put there without its metadata."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with its circumstances to `path`."""
    head = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": " ".join(["python", *(os.path.relpath(a) if os.path.exists(a) else a for a in sys.argv)]),
        "cores": os.cpu_count(),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, **content}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
