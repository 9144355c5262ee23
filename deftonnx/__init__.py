"""Make exported ONNX models smaller and faster, to an accuracy you name, without the framework they came from."""

from deftonnx.check import CheckResult, check
from deftonnx.errors import DeftError
from deftonnx.inspect import LayerInfo, inspect
from deftonnx.optimize import Result, optimize
from deftonnx.plan import LayerPlan, Plan
from deftonnx.version import __version__

__all__ = [
    "CheckResult",
    "DeftError",
    "LayerInfo",
    "LayerPlan",
    "Plan",
    "Result",
    "__version__",
    "check",
    "inspect",
    "optimize",
]
