"""Prints what compiles the kernels, as pip's requirements: the group `kernels` of pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path


def kernel_tools() -> list[str]:
    """The requirements."""
    content = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    tools: list[str] = content["dependency-groups"]["kernels"]
    return tools


if __name__ == "__main__":
    print("\n".join(kernel_tools()))
