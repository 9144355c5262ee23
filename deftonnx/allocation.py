"""How a process that does nothing else gets its memory."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """Tell glibc to keep memory that is freed for the next allocation, rather than to give it back.

    An optimisation allocates the size of the model dozens of times, and touching fresh pages takes longer than the
    arithmetic on them. Returns whether it was possible; other C libraries have no such setting.
    """
    with contextlib.suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None)
        return bool(allocator.mallopt(_M_MMAP_MAX, 0) and allocator.mallopt(_M_TRIM_THRESHOLD, -1))
    return False
