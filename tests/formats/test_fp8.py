"""Format fp8: X rounded row by row, by NumPy and by the function body in stock ONNX Runtime."""

import ml_dtypes
import numpy as np
import pytest
from gemm_model import DTYPES, gemm_model, reference, run_gemm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deftonnx.formats import FormatError, get_format, multiplied, pack_weight, unpack_weight
from deftonnx.formats.conv_function import Window, conv_attributes
from deftonnx.formats.deft8 import decode_table
from deftonnx.formats.fp8 import round_rows

rows = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=9),
    elements=st.floats(-(2.0**127), 2.0**127, width=32),
)


def spread(M, K, seed=0):
    """Rows of magnitudes from 2^-140 to 2^120, a row of zeros, and rows with values midway between two codes."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((M, K)) * 2.0 ** rng.integers(-140, 120, (M, 1)) * 2.0 ** rng.integers(-12, 0, (M, K))
    X[0] = 0
    codes = decode_table(4)[:0x7F].astype(np.float64)  # ascending
    midway = np.resize((codes[1:] + codes[:-1]) / 2, K)
    X[1], X[2] = midway, -midway / 2
    X[1:3, 0] = 448
    return X.astype(np.float32)


def body_of(X, opset=17):
    """X as a body rounds it: times the identity matrix."""
    K = X.shape[-1]
    packed = pack_weight(np.eye(K, dtype=np.float32), "fp8")
    packed.scale[:] = 1
    packed.codes[packed.codes > 0] = 0x38  # 1
    return run_gemm(gemm_model(X, packed, np.zeros(K, np.float32), opset=opset), X)


@given(rows)
def test_rounding_is_e4m3_s_at_a_power_of_two(X):
    largest = np.abs(X).max(axis=-1, keepdims=True).astype(np.float64)
    scale = np.maximum(2.0 ** np.ceil(np.log2(np.where(largest > 0, largest, 1) / 448)), 2.0**-100)
    scale[largest == 0] = 2.0**-100
    assert (largest <= 448 * scale).all()
    expected = (X / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale
    assert np.array_equal(round_rows(X), expected)
    assert np.array_equal(round_rows(round_rows(X)), round_rows(X))


def test_rounding_is_exact_in_bfloat16():
    rounded = round_rows(spread(500, 33))
    assert np.array_equal(rounded.astype(ml_dtypes.bfloat16).astype(np.float32), rounded)


def test_weights_are_those_of_deft8():
    weight = np.random.default_rng(0).standard_normal((40, 7)).astype(np.float32)
    packed, same = pack_weight(weight, "fp8"), pack_weight(weight, "deft8:4")
    assert (packed.format, same.format) == ("fp8", "deft8:4")
    assert np.array_equal(packed.codes, same.codes)
    assert np.array_equal(unpack_weight(packed), unpack_weight(same))
    e4m3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(np.isnan(e4m3).nonzero()[0], [0x7F, 0xFF])
    assert np.array_equal(decode_table(4)[np.isfinite(e4m3)], e4m3[np.isfinite(e4m3)])


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_the_body_rounds_alike(opset):
    X = spread(300, 127)
    assert np.array_equal(body_of(X, opset), round_rows(X))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_one_layer(dtype):
    rng = np.random.default_rng(1)
    X = (rng.standard_normal((2, 3, 40)) * 2.0 ** rng.integers(-9, 5, (2, 3, 1))).astype(dtype)
    packed, bias = pack_weight(rng.standard_normal((24, 9)).astype(np.float32), "fp8"), np.ones(9, np.float32)
    X[..., :16] *= 100  # not kept, so no matter
    model = gemm_model(X, packed, bias, features=40, block=16, kept=[1, 2], activation="relu")
    expected = reference(X[..., 16:], packed, bias, activation="relu")
    exact = np.maximum(X[..., 16:].astype(np.float64) @ unpack_weight(packed) + bias, 0)
    assert not np.allclose(expected, exact, rtol=1e-3)
    tolerance = {np.float32: 1e-6, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}[dtype]
    assert np.linalg.norm(run_gemm(model, X).astype(np.float64) - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_row_that_is_not_finite_becomes_nan(bad):
    X = spread(4, 16)
    X[2, 5] = bad
    for rounded in (round_rows(X), body_of(X)):
        assert np.isnan(rounded[2]).all()
        assert np.array_equal(np.delete(rounded, 2, 0), round_rows(np.delete(X, 2, 0)))


def test_no_rows():
    X = np.zeros((0, 16), np.float32)
    assert round_rows(X).shape == body_of(X).shape == (0, 16)


def test_other_formats_leave_activations_alone():
    X = spread(3, 5)
    assert multiplied(X, "deft8:4") is X


def test_options_and_convolutions_are_refused():
    with pytest.raises(FormatError, match="no options"):
        get_format("fp8:4")
    with pytest.raises(FormatError, match="DeftConv"):
        conv_attributes(pack_weight(np.ones((4, 2), np.float32), "fp8"), Window.of((1,)), 4)
