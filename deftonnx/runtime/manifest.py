"""What an operator library contains, read from its file: nothing is loaded."""

from __future__ import annotations

import functools
import json
import mmap
from dataclasses import dataclass
from pathlib import Path

from deftonnx.errors import UnsupportedError

_MARK = b"deftonnx-manifest:"


@dataclass(frozen=True)
class Manifest:
    """A library's version, the digest of its kernels, and their names by compute capability (90 for 9.0)."""

    version: str
    fingerprint: str
    kernels: dict[int, list[str]]

    def code_for(self, capability: int) -> int | None:
        """The compute capability whose machine code a GPU of `capability` runs, or None if there is none.

        Machine code runs on the same major version and the same or a newer minor one.
        """
        runs = [a for a in self.kernels if a // 10 == capability // 10 and a <= capability]
        return max(runs, default=None)


def read_manifest(library: str | Path) -> Manifest:
    """Return the manifest inside `library`. Raises UnsupportedError if that has none."""
    try:
        state = Path(library).stat()
        return _read(library, state.st_mtime_ns, state.st_size)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedError(
            f"'{library}' is not an operator library of DeftONNX, or one without manifest"
        ) from error


@functools.lru_cache(maxsize=1)
def _read(library: str | Path, modified_ns: int, size: int) -> Manifest:
    """The manifest of a file in that state: every session of a process asks for it."""
    with (
        Path(library).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        start = content.find(_MARK) + len(_MARK)
        end = content.find(b"\0", start)
        text = content[start:end] if start >= len(_MARK) and end > start else b""
    fields = json.loads(text)
    kernels = {int(architecture): names for architecture, names in fields["kernels"].items()}
    return Manifest(fields["version"], fields["fingerprint"], kernels)
