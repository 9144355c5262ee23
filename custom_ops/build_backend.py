"""The build backend that pyproject.toml names: setuptools, and before it the operator library.

`pip install .` builds the library; an editable install does not, and so starts at once. The environment variable
DEFTONNX_KERNELS, or pip's `--config-settings kernels=...`, decides otherwise:

    0 or no       the package without the library
    1 or yes      the library, or an error that says what is missing
    90 or 80,90   the same for these compute capabilities alone, which is quicker

The tools for it are asked of the package index only where the library will be built: the group `kernels` of
pyproject.toml. Where it cannot be built, for want of a C++ compiler for one, the package installs without it and says
so: models run all the same, by standard operators.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_tools import kernel_tools
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that are not replaced below)

HERE = Path(__file__).resolve().parent
VARIABLE = "DEFTONNX_KERNELS"
Settings = dict[str, Any] | None


class BuildError(SystemExit):
    """The library was asked for and cannot be built: one sentence, and no traceback in pip's output."""


@dataclass(frozen=True)
class Request:
    """Whether to build the library, whether it is an error if that cannot be, and for which GPUs (empty: all)."""

    build: bool
    required: bool = False
    architectures: tuple[int, ...] = ()


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Setuptools' own, and the kernels' tools where they will be used."""
    return build_meta.get_requires_for_build_wheel(_plain(config_settings)) + _tools(_request(config_settings, True))


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """As for a wheel."""
    return build_meta.get_requires_for_build_editable(_plain(config_settings)) + _tools(
        _request(config_settings, False)
    )


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """The library, and a wheel that is bound to this platform if it holds one."""
    _build_library(_request(config_settings, True))
    settings = _plain(config_settings)
    if _library().exists():
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        options = settings.get("--build-option", [])
        settings["--build-option"] = [*([options] if isinstance(options, str) else options), f"--plat-name={tag}"]
    return build_meta.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """The library, if it is asked for, and an editable wheel."""
    _build_library(_request(config_settings, False))
    return build_meta.build_editable(wheel_directory, _plain(config_settings), metadata_directory)


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings that are setuptools'."""
    return {key: value for key, value in (settings or {}).items() if key != "kernels"}


def _request(settings: Settings, default: bool) -> Request:
    text = str((settings or {}).get("kernels") or os.environ.get(VARIABLE, "")).strip().lower()
    if text in ("", "auto"):
        return Request(build=default)
    if text in ("0", "no", "off", "false"):
        return Request(build=False)
    if text in ("1", "yes", "on", "true"):
        return Request(build=True, required=True)
    known = sorted(runpy.run_path(str(HERE / "images.py"))["ARCHITECTURES"])
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) in known for part in parts):
        raise BuildError(f"{VARIABLE}={text}: give 0, 1, or compute capabilities among {', '.join(map(str, known))}")
    return Request(build=True, required=True, architectures=tuple(map(int, parts)))


def _obstacle() -> str | None:
    """Why this machine cannot build the library, or None."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"it is made for Linux on x86-64 and 64-bit ARM, not for {sys.platform} on {platform.machine()}"
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler '{compiler}': install g++ 9 or newer, or set CXX"
    return None


def _tools(request: Request) -> list[str]:
    return kernel_tools() if request.build and _obstacle() is None else []


def _library() -> Path:
    return HERE.parent / "deftonnx" / "runtime" / "libdeftonnx_ops.so"


def _build_library(request: Request) -> None:
    if not request.build:
        return
    reason = _obstacle()
    if reason is None and importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed, and --no-build-isolation keeps pip from getting it"
    if reason is not None:
        if request.required:
            raise BuildError(f"the operator library cannot be built: {reason}")
        print(f"deftonnx: installing without the operator library: {reason}", file=sys.stderr)
        return
    jobs = len(os.sched_getaffinity(0))
    command = [sys.executable, str(HERE / "build.py"), f"--jobs={jobs}"]
    command += [f"--arch={architecture}" for architecture in request.architectures]
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise BuildError(
            f"building the operator library failed, see above; {VARIABLE}=0 installs without it"
        ) from error
