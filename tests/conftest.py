"""Shared fixtures. Tests import `models` and `generator` from this folder."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from deftonnx import runtime

CUSTOM_OPS = Path(__file__).parents[1] / "custom_ops"


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def operator_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The built library, or its C++ part alone, which takes seconds and no Triton."""
    try:
        return runtime.get_library_path()
    except FileNotFoundError:
        if shutil.which(os.environ.get("CXX", "c++")) is None:
            pytest.skip("the custom operator library is not built, and there is no C++ compiler to build it with")
        sys.path.insert(0, str(CUSTOM_OPS))
        import build

        folder = tmp_path_factory.mktemp("library")
        output = folder / "libdeftonnx_ops.so"
        build.link(*build.write_tables({f.TABLE: [] for f in build.FAMILIES}, folder / "table", "0"), output)
        return str(output)
