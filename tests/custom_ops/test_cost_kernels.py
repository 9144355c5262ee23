"""The cost model asks the library which kernel would serve a layer, and how long that would take."""

import pytest
from onnx import TensorProto

from deftonnx.cost.roofline import KERNEL_SECONDS, RATES, ModelClock
from deftonnx.cost.work import DEFT, STOCK, Convolution, Form, Product
from deftonnx.formats.conv_function import Window
from deftonnx.runtime.gpus import GPUS
from deftonnx.runtime.manifest import read_manifest

HALF = TensorProto.FLOAT16
PACKED = Form(DEFT, HALF, "half")
WORKS = [
    Product(128, 768, 3072, True),
    Convolution((28, 28), 128, 128, Window.of((3, 3), pads=(1, 1, 1, 1)), True),
    Convolution((50, 50), 3, 20, Window.of((5, 5)), False),
    Convolution((100,), 64, 64, Window.of((3,)), True),
]


@pytest.fixture
def clock(operator_library, monkeypatch):
    monkeypatch.setenv("DEFTONNX_TUNING", "")
    if 90 not in read_manifest(operator_library).kernels:
        pytest.skip("the library was built without kernels for sm_90")
    return ModelClock(GPUS["h200"], RATES["h200"], operator_library)


@pytest.mark.parametrize("work", WORKS, ids=["product", "conv", "few channels", "one axis"])
def test_times_are_the_librarys(clock, work):
    name, seconds = clock.kernel(work, PACKED, 64)
    assert name
    assert clock.seconds(work, [PACKED], [64])[PACKED] == [pytest.approx(seconds + KERNEL_SECONDS)]
    assert clock.kernel(work, Form(STOCK, HALF), 64) is None


@pytest.mark.parametrize("work", WORKS[:2], ids=["product", "conv"])
def test_kept_blocks_take_less_time(clock, work):
    kept = Form(DEFT, HALF, "half", 0.5, 32)
    times = clock.seconds(work, [PACKED, kept], [64])
    assert times[kept] < times[PACKED]
