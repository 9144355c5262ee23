"""Running packed models: the custom operator library and how a session gets it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

__all__ = ["get_library_path", "register"]

_LIBRARY = "libdeftonnx_ops.so"


def get_library_path() -> str:
    """Return the path of the custom operator library, for any program that ONNX Runtime serves.

    Raises FileNotFoundError if this installation was made without it.
    """
    path = Path(__file__).parent / _LIBRARY
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} was not built: run custom_ops/build.py. Models run without it, by standard operators"
        )
    return str(path)


def register(session_options: SessionOptions) -> None:
    """Let sessions made with `session_options` use the packed operators' own kernels.

    Raises FileNotFoundError as get_library_path does.
    """
    session_options.register_custom_ops_library(get_library_path())
