"""GPU tests run where ONNX Runtime's CUDA provider does; elsewhere they are skipped and say why."""

import sys

import onnxruntime
import pytest

from deftonnx import runtime
from deftonnx.runtime import cuda


def _obstacle():
    if reason := cuda.obstacle():
        return reason
    try:
        runtime.get_library_path()
    except FileNotFoundError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items):
    items = [item for item in items if "tests/gpu/" in item.path.as_posix()]
    obstacle = _obstacle() if items else None
    for item in items:
        item.add_marker(pytest.mark.gpu)
        if obstacle:
            item.add_marker(pytest.mark.skip(reason=obstacle))


def pytest_runtest_logreport(report):
    """Of a run that is cut off, too, it is known what had failed by then."""
    if report.failed and "tests/gpu/" in report.nodeid:
        print(f"\n{report.nodeid} failed: {report.longreprtext[-2000:]}", file=sys.stderr, flush=True)


@pytest.fixture
def options():
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 3
    runtime.register(session_options)
    return session_options
