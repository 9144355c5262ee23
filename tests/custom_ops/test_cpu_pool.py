"""DeftPool on the CPU: its function body without the library, its kernel with it, and bad nodes refused at creation."""

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from gemm_model import DTYPES, run_gemm
from pool_model import POOLS, case
from refusals import refusal, with_attribute

from deftonnx.formats.packed import FormatError
from deftonnx.formats.pool_function import pool_attributes

TOLERANCE = {np.float32: 1e-6, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}
RUNTIME = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def check(Y, expected, dtype):
    assert Y.dtype == dtype
    assert Y.shape == expected.shape
    assert np.linalg.norm(Y.astype(np.float64) - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", POOLS)
def test_kernel(options, name, dtype):
    X, model, expected = case(name, dtype)
    check(run_gemm(model, X, options=options), expected, dtype)


@pytest.mark.parametrize("opset", [13, 17, 19, 21])
@pytest.mark.parametrize("name", POOLS)
def test_function_body(name, opset):
    if POOLS[name][3].get("ceil_mode") and name.startswith("average") and opset < 19 and RUNTIME < (1, 29):
        pytest.skip("ONNX Runtime before 1.29 averages wrongly where ceil_mode adds a window")
    X, model, expected = case(name, np.float16, opset=opset)
    check(run_gemm(model, X), expected, np.float16)


def test_an_empty_batch_and_a_value_that_is_not_a_number(options):
    X, model, _ = case("max", np.float32, batch=0)
    assert run_gemm(model, X, options=options).shape == (0, 5, 6, 16)
    X, model, _ = case("max", np.float32)
    X[0, 0, 0, 3] = np.nan
    Y = run_gemm(model, X, options=options)
    assert np.isnan(Y[0, 0, 0, 3])
    assert np.isnan(Y).sum() == 1


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("kind", "median", "unknown kind 'median'"),
        ("kind", None, "'kind' is missing"),
        ("kernel_shape", [0, 3], "0 on all axes or on none"),
        ("kernel_shape", [0, 0], "no strides, pads or dilations"),
        ("kernel_shape", [-1, 3], "must be positive"),
        ("strides", [2], "do not match the 2 axes"),
        ("pads", [3, 1, 1, 1], "pads must be smaller than the window"),
        ("size", 3, "only a normalisation has a size"),
        ("output_type", 16, "output_type"),
        ("alpha", None, "'alpha' is missing"),
    ],
)
def test_bad_attributes_are_refused(options, attribute, value, reason):
    _, model, _ = case("max", np.float32)
    message = refusal(with_attribute(model, attribute, value), options)
    assert reason in message
    assert "DeftPool node 'layer'" in message


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("strides", [2, 1], "leaves the size of the image alone"),
        ("size", 5, "not both"),
        ("size", 0, "out of range"),
        ("size", 4, "not odd"),
    ],
)
def test_bad_normalisations_are_refused(options, attribute, value, reason):
    _, model, _ = case("normalise_image", np.float32)
    assert reason in refusal(with_attribute(model, attribute, value), options)


def test_a_wrong_input_shape_is_an_error_not_a_crash(options):
    X, model, _ = case("average_wide", np.float32)
    with pytest.raises(Exception, match="smaller than the window"):
        run_gemm(model, X[:, :3, :3], options=options)


def test_bad_attributes_are_refused_offline():
    with pytest.raises(FormatError, match="unknown kind 'mean'"):
        pool_attributes("mean", [2, 2])
    with pytest.raises(FormatError, match="one or two axes, not 3"):
        pool_attributes("max", [2, 2, 2])
