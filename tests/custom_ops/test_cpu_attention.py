"""DeftAttention on the CPU: its function body without the library, its kernel with it, and bad nodes refused."""

import numpy as np
import pytest
from attention_model import BIASES, SHAPES, case, run
from gemm_model import DTYPES
from refusals import refusal, with_attribute

LIMIT = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}


def distance(Y, expected):
    return np.linalg.norm(Y.astype(np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("shape", [s for s in SHAPES.values() if s[0] * s[1] ** 2 * s[2] < 1 << 18], ids=str)
def test_kernel(options, shape, bias):
    for dtype in DTYPES:
        X, values, model, expected = case(shape, bias, dtype)
        assert distance(run(model, X, values, options), expected) <= LIMIT[np.dtype(dtype).name]


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("bias", BIASES)
def test_function_body(bias, opset):
    for dtype in (np.float32, np.float16):
        X, values, model, expected = case(SHAPES["short"], bias, dtype, opset=opset)
        assert distance(run(model, X, values), expected) <= LIMIT[np.dtype(dtype).name]


@pytest.mark.parametrize("with_library", [False, True])
def test_a_row_of_masked_keys_is_zero(options, with_library):
    X, values, model, _ = case(SHAPES["short"], "rows", np.float32)
    values[1, 0, 4] = -np.inf
    Y = run(model, X, values, options if with_library else None)
    assert not Y[1, 4].any()
    assert Y[1, 3].any()


@pytest.mark.parametrize("with_library", [False, True])
def test_a_row_of_the_lowest_number_is_the_mean(options, with_library):  # as exporters of PyTorch mask
    X, values, model, _ = case(SHAPES["short"], "rows", np.float32)
    values[1, 0, 4] = np.finfo(np.float32).min
    Y = run(model, X, values, options if with_library else None)
    np.testing.assert_allclose(Y[1, 4], X[1].mean(0)[-Y.shape[-1] :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_library", [False, True])
def test_a_score_that_is_not_a_number_shows(options, with_library):
    X, values, model, _ = case(SHAPES["short"], "rows", np.float32)
    values[1, 0, 4, 2] = np.nan
    Y = run(model, X, values, options if with_library else None)
    assert np.isnan(Y[1, 4]).all()
    assert np.isfinite(Y[1, 3]).all()


def test_an_empty_batch(options):
    X, _, model, _ = case(SHAPES["short"], "no_bias", np.float32)
    assert run(model, X[:0], None, options).shape == (0, 9, 64)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("num_heads", 0, "out of range"),
        ("head_size", None, "'head_size' is missing"),
        ("scale", None, "'scale' is missing"),
        ("output_type", 10, "output_type"),
    ],
)
def test_bad_attributes_are_refused(options, attribute, value, reason):
    _, _, model, _ = case(SHAPES["short"], "no_bias", np.float32)
    assert reason in refusal(with_attribute(model, attribute, value), options)


def test_wrong_inputs_are_errors_not_crashes(options):
    X, values, model, _ = case(SHAPES["short"], "rows", np.float32)
    with pytest.raises(Exception, match="must have 192"):
        run(model, X[..., 1:], values, options)
    with pytest.raises(Exception, match="expected"):
        run(model, X, values[..., 1:], options)
