"""The array library for the heavy algebra: CuPy where there is a GPU, NumPy otherwise (`xp` in the code)."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np


@functools.cache
def array_module() -> ModuleType:
    """CuPy if it is installed and sees a device, else NumPy."""
    try:
        import cupy

        return cupy if cupy.cuda.runtime.getDeviceCount() > 0 else np
    except Exception:  # a missing or broken CUDA installation shows in many ways, and NumPy serves as well
        return np


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """`array` on the host."""
    return array if isinstance(array, np.ndarray) else array.get()
