"""Imports run one way, from the command line down to the errors; the package holds every folder."""

from __future__ import annotations

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIERS = [
    {"errors", "version", "arrays", "allocation", "overloads", "plan", "model", "model_file", "sessions"},
    {"layers", "calibration", "formats", "runtime"},
    {"elimination", "rewrite"},
    {"cost"},
    {"settings", "selection", "format_selection", "evaluation"},
    {"report"},
    {"shapes"},
    {"deciding"},
    {"assemble", "precision", "presets", "transformers", "optimize", "inspect", "check"},
    {"__init__", "cli"},
]
APART = {"elimination": "rewrite", "rewrite": "elimination", "formats": "layers", "layers": "calibration"}
"""Parts of one tier, or of the next, that know nothing of each other."""
FILES = [*(ROOT / "deftonnx").rglob("*.py"), *(ROOT / "cli").glob("*.py")]


def part(path: Path) -> str:
    """The part of the package that a file belongs to."""
    relative = path.relative_to(ROOT).parts
    return "cli" if relative[0] == "cli" else relative[1].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The parts that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "deftonnx":
            modules = [f"deftonnx.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
        found |= {m.split(".")[1] for m in modules if m.startswith("deftonnx.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    tier = {name: i for i, names in enumerate(TIERS) for name in names}
    own = part(path)
    for other in imported(path) - {own}:
        assert tier[other] <= tier[own], f"{own} imports {other}"
        assert APART.get(own) != other, f"{own} imports {other}"


def test_every_folder_is_installed() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    folders = {".".join(path.relative_to(ROOT).parent.parts) for path in FILES}
    installed = {name.replace("deftonnx.cli", "cli") for name in settings["options"]["packages"].split()}
    assert installed == folders
