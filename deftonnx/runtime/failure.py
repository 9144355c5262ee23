"""What ONNX Runtime's errors say."""

from __future__ import annotations

from deftonnx.sessions import first_line


def reason(error: BaseException) -> str:
    """What ONNX Runtime says of a failure, in one line and without its codes."""
    return first_line(error).removeprefix("[ONNXRuntimeError] : ").split(" : ", 2)[-1]
