"""How memory is kept and given back."""

from __future__ import annotations

import contextlib
import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """Tell glibc to keep memory that is freed for the next allocation, rather than to give it back; for a process that
    does nothing else.

    Elimination allocates the activations of a batch again and again, and touching fresh pages takes longer than the
    arithmetic on them. Returns whether it was possible; other C libraries have no such setting.
    """
    with contextlib.suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None)
        return bool(allocator.mallopt(_M_MMAP_MAX, 0) and allocator.mallopt(_M_TRIM_THRESHOLD, -1))
    return False


def free_cycles() -> None:
    """Free constants that no graph has any more: onnx-graphsurgeon's tensors and the lists in them refer to each other,
    so they and their weights stay until Python looks for such cycles, which it seldom does."""
    gc.collect()
