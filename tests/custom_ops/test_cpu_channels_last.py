"""DeftChannelsLast on the CPU: its function body without the library, its kernel with it, and bad nodes refused."""

import numpy as np
import pytest
from channels_last_model import IMAGES, case
from gemm_model import DTYPES, run_gemm
from refusals import refusal, with_attribute

from deftonnx.formats.channels_last_function import channels_last_attributes
from deftonnx.formats.packed import FormatError


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", IMAGES)
def test_kernel(options, name, dtype):
    X, model, expected = case(name, dtype)
    assert np.array_equal(run_gemm(model, X, options=options), expected)


@pytest.mark.parametrize("opset", [13, 17, 19, 21])
@pytest.mark.parametrize("name", IMAGES)
def test_function_body(name, opset):
    for dtype in (np.float32, np.float16):
        X, model, expected = case(name, dtype, opset=opset)
        assert np.array_equal(run_gemm(model, X), expected)


def test_an_empty_batch(options):
    X, model, _ = case("three_channels", np.float32, batch=0)
    assert run_gemm(model, X, options=options).shape == (0, 9, 7, 3)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("image_axes", 3, "known are 1 and 2"),
        ("image_axes", 0, "out of range"),
        ("image_axes", None, "'image_axes' is missing"),
        ("output_type", 16, "output_type"),
    ],
)
def test_bad_attributes_are_refused(options, attribute, value, reason):
    _, model, _ = case("three_channels", np.float32)
    assert reason in refusal(with_attribute(model, attribute, value), options)


def test_a_wrong_input_is_an_error_not_a_crash(options):
    X, model, _ = case("three_channels", np.float32)
    next(a for a in model.graph.node[0].attribute if a.name == "image_axes").i = 1
    with pytest.raises(Exception, match="expected 3 axes"):
        run_gemm(model, X, options=options)


def test_bad_attributes_are_refused_offline():
    with pytest.raises(FormatError, match="one or two axes, not 3"):
        channels_last_attributes(3)
