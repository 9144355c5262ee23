"""GPU tests run where ONNX Runtime's CUDA provider does; elsewhere they are skipped and say why."""

import contextlib

import pytest

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  (its CUDA libraries must be in the process before onnxruntime's)

import onnxruntime

from deftonnx import runtime


def _obstacle():
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "onnxruntime has no CUDA provider"
    try:
        runtime.get_library_path()
    except FileNotFoundError as error:
        return str(error)
    try:
        device = onnxruntime.OrtValue.ortvalue_from_shape_and_type([1], "float32", "cuda", 0)
    except Exception as error:
        return f"no usable GPU: {error}"
    return None if device.device_name() == "cuda" else "no usable GPU"


def pytest_collection_modifyitems(items):
    items = [item for item in items if "tests/gpu/" in item.path.as_posix()]
    obstacle = _obstacle() if items else None
    for item in items:
        item.add_marker(pytest.mark.gpu)
        if obstacle:
            item.add_marker(pytest.mark.skip(reason=obstacle))


@pytest.fixture
def options():
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 3
    runtime.register(session_options)
    return session_options
