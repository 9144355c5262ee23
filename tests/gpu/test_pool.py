"""DeftPool on the GPU against float64 arithmetic."""

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from gemm_model import DTYPES, ONNX_TYPE, run_gemm
from pool_model import POOLS, case, pool_model, reference

from deftonnx.formats.pool_function import pool_attributes

TOLERANCE = {np.float32: 1e-5, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}
CUDA = ("CUDAExecutionProvider",)


def check(Y, expected, dtype):
    assert Y.dtype == dtype
    assert Y.shape == expected.shape
    assert np.linalg.norm(Y.astype(np.float64) - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", POOLS)
def test_pools(options, name, dtype):
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for batch in (1, 5):
        X, model, expected = case(name, dtype, batch=batch)
        check(run_gemm(model, X, None, options, CUDA), expected, dtype)


@pytest.mark.parametrize("channels", [64, 61])
def test_many_blocks(options, channels):
    X = np.random.default_rng(3).standard_normal((33, 29, 30, channels)).astype(np.float16)
    for kind, window in (
        ("max", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("average", {"kernel_shape": [0, 0]}),
    ):
        attributes = pool_attributes(kind, **window, output_type=ONNX_TYPE[X.dtype])
        Y = run_gemm(pool_model(X, attributes), X, None, options, CUDA)
        check(Y, reference(X, attributes), np.float16)


def test_an_empty_batch_and_a_value_that_is_not_a_number(options):
    X, model, _ = case("max", np.float16, batch=0)
    assert run_gemm(model, X, None, options, CUDA).size == 0
    X, model, _ = case("max", np.float16)
    X[0, 0, 0, 3] = np.nan
    Y = run_gemm(model, X, None, options, CUDA)
    assert np.isnan(Y[0, 0, 0, 3])
    assert np.isnan(Y).sum() == 1


def test_graphs_and_repeats_give_the_same_bits(options):
    X, model, expected = case("average_global", np.float16, batch=9)
    for axis, size in enumerate(X.shape):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    results = set()
    for provider_options in ({}, {"enable_cuda_graph": "1"}):
        providers = [("CUDAExecutionProvider", provider_options)]
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        binding = session.io_binding()
        binding.bind_ortvalue_input("X", onnxruntime.OrtValue.ortvalue_from_numpy(X, "cuda", 0))
        output = onnxruntime.OrtValue.ortvalue_from_shape_and_type([9, 1, 1, 72], X.dtype, "cuda", 0)
        binding.bind_ortvalue_output("Y", output)
        for _ in range(50):
            session.run_with_iobinding(binding)
            results.add(output.numpy().tobytes())
    assert len(results) == 1
    check(output.numpy(), expected, np.float16)
