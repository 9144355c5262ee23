"""Make exported ONNX models smaller and faster, to an accuracy you name, without the framework they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deftonnx.check import CheckResult, check
from deftonnx.errors import DeftError
from deftonnx.inspect import LayerInfo, inspect
from deftonnx.optimize import Result, optimize
from deftonnx.plan import LayerPlan, Plan
from deftonnx.runtime import get_library_path, register
from deftonnx.version import __version__

if TYPE_CHECKING:
    from deftonnx.runtime.session import InferenceSession

__all__ = [
    "CheckResult",
    "DeftError",
    "InferenceSession",
    "LayerInfo",
    "LayerPlan",
    "Plan",
    "Result",
    "__version__",
    "check",
    "get_library_path",
    "inspect",
    "optimize",
    "register",
]


def __getattr__(name: str) -> Any:
    # only who asks for a session pays for what it needs
    if name == "InferenceSession":
        from deftonnx.runtime.session import InferenceSession

        return InferenceSession
    raise AttributeError(f"module 'deftonnx' has no attribute '{name}'")
