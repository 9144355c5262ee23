"""What a measurement or a report depends on: versions, driver, GPU."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import onnx
import onnxruntime

from deftonnx.runtime import cuda
from deftonnx.version import __version__

_DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime", "onnxruntime-directml", "onnxruntime-openvino")


def environment() -> dict[str, Any]:
    """Versions of everything that runs a model, and the GPUs, as JSON can hold them."""
    return {
        "deftonnx": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime_packages": onnxruntime_packages(),
        "onnxruntime_build": onnxruntime.get_build_info(),
        "driver": cuda.driver_version(),
        "driver_cuda": cuda.cuda_version(),
        "gpus": [vars(device) for device in cuda.devices()],
    }


def onnxruntime_packages() -> list[str]:
    """The installed distributions of ONNX Runtime; more than one overwrite each other's files."""
    found = []
    for name in _DISTRIBUTIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found
