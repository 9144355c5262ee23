"""The custom operator library and how a session gets it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deftonnx.errors import UnsupportedError

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

_LIBRARY = "libdeftonnx_ops.so"


class LibraryNotFoundError(UnsupportedError, FileNotFoundError):
    """This installation was made without the operator library."""


def get_library_path() -> str:
    """Return the path of the custom operator library, for any program that ONNX Runtime serves.

    Raises LibraryNotFoundError, a FileNotFoundError, if this installation was made without it.
    """
    path = Path(__file__).parent / _LIBRARY
    if not path.is_file():
        raise LibraryNotFoundError(
            f"{path} was not built: 'pip install .' makes it; models run without it, by standard operators"
        )
    return str(path)


def register(session_options: SessionOptions) -> None:
    """Let sessions made with `session_options` use the packed operators' own kernels. Twice is as good as once.

    Sessions on the CPU alone are as fast without. Raises LibraryNotFoundError as get_library_path does.
    """
    session_options.register_custom_ops_library(get_library_path())
