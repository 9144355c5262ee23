"""Running models: the custom operator library, sessions that use it, and what this machine can run."""

from deftonnx.runtime.library import get_library_path, register

__all__ = ["get_library_path", "register"]
