"""DeftAttention on the GPU against float64 arithmetic on the same operands."""

import ml_dtypes
import numpy as np
import pytest
from attention_model import BIASES, SHAPES, case, run

CUDA = ("CUDAExecutionProvider",)
LIMIT = {"float16": 1e-3, "bfloat16": 8e-3}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(options, shape, bias, dtype):
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    X, values, model, expected = case(shape, bias, dtype)
    Y = run(model, X, values, options, CUDA).astype(np.float64)
    assert np.linalg.norm(Y - expected) <= LIMIT[np.dtype(dtype).name] * np.linalg.norm(expected)


@pytest.mark.parametrize("kernel", ["64_1", "64_2", "hopper"])
@pytest.mark.parametrize("bias", ["no_bias", "rows"])
@pytest.mark.parametrize("shape", ["vit", "whole_steps", "between_sizes", "long"])
def test_kernels(options, shape, bias, kernel):
    name = f"attention_fp16_{kernel}"
    X, values, model, expected = case(SHAPES[shape], bias, np.float16, compute=name)
    Y = run(model, X, values, options, CUDA).astype(np.float64)
    assert np.linalg.norm(Y - expected) <= LIMIT["float16"] * np.linalg.norm(expected)


def test_masked_rows_are_zero_and_nan_shows(options):
    X, values, model, _ = case(SHAPES["whole_steps"], "rows", np.float16)
    values[1, 0, 4] = -np.inf
    values[1, 0, 77, 2] = np.nan
    Y = run(model, X, values, options, CUDA)
    assert not Y[1, 4].any()
    assert np.isnan(Y[1, 77]).all()
    assert np.isfinite(np.delete(Y, 77, axis=1)).all()


def test_empty_inputs(options):
    X, values, model, _ = case(SHAPES["short"], "rows", np.float16)
    assert run(model, X[:0], values[:0], options, CUDA).shape == (0, 9, 64)


@pytest.mark.parametrize(("size", "reason"), [(12, "no multiple of 8"), (72, "no kernel")])
def test_head_sizes_that_no_kernel_serves_are_refused(options, size, reason):
    X, _, model, _ = case((2, 5, 2, size), "no_bias", np.float16)
    with pytest.raises(Exception, match=reason):
        run(model, X, None, options, CUDA)
