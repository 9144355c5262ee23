"""The library for these tests: the built one, or its C++ part alone, which takes seconds and no Triton."""

import os
import shutil
import sys
from pathlib import Path

import onnxruntime
import pytest

from deftonnx import runtime

CUSTOM_OPS = Path(__file__).parents[2] / "custom_ops"


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    try:
        return runtime.get_library_path()
    except FileNotFoundError:
        if shutil.which(os.environ.get("CXX", "c++")) is None:
            pytest.skip("the custom operator library is not built, and there is no C++ compiler to build it with")
        sys.path.insert(0, str(CUSTOM_OPS))
        import build

        folder = tmp_path_factory.mktemp("library")
        output = folder / "libdeftonnx_ops.so"
        build.link(list(build.write_table([], folder / "table")), output)
        return str(output)


@pytest.fixture
def options(library):
    session_options = onnxruntime.SessionOptions()
    session_options.register_custom_ops_library(library)
    return session_options
