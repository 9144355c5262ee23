"""Arrays kept in memory up to a budget and in temporary files beyond it."""

from __future__ import annotations

import os
import tempfile
import weakref
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MEMORY_BUDGET = 512 << 20
"""Bytes of activations held in memory before they go to disk."""


class Spool:
    """Takes arrays and hands out `Stored` tickets; what a ticket holds is freed when the ticket is dropped."""

    def __init__(self, budget: int = MEMORY_BUDGET) -> None:
        self._left = budget
        self._folder = tempfile.TemporaryDirectory(prefix="deftonnx-")
        self._serial = 0

    def store(self, array: Array) -> Stored:
        """Keep `array`, in memory if it fits the budget."""
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            stored = Stored(array, None)
            weakref.finalize(stored, self._release, array.nbytes)
            return stored
        self._serial += 1
        path = os.path.join(self._folder.name, f"{self._serial}.npy")
        np.save(path, array)
        stored = Stored(None, path)
        weakref.finalize(stored, _remove, path)
        return stored

    def close(self) -> None:
        """Remove the temporary files."""
        self._folder.cleanup()

    def _release(self, nbytes: int) -> None:
        self._left += nbytes


class Stored:
    """One array of a spool."""

    def __init__(self, array: Array | None, path: str | None) -> None:
        self._array, self._path = array, path

    def load(self) -> Array:
        """The array."""
        if self._array is not None:
            return self._array
        assert self._path is not None
        return np.load(self._path, allow_pickle=False)


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.remove(path)
