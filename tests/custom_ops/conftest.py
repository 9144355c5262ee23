"""The library and session options that have it."""

import onnxruntime
import pytest


@pytest.fixture(scope="session")
def library(operator_library):
    return operator_library


@pytest.fixture
def options(library):
    session_options = onnxruntime.SessionOptions()
    session_options.register_custom_ops_library(library)
    return session_options
