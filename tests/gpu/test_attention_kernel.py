"""DeftAttention on the GPU against float64 arithmetic on the same operands."""

import ml_dtypes
import numpy as np
import pytest
from attention_model import BIASES, KIND_SHAPES, KINDS, SHAPES, case, run

CUDA = ("CUDAExecutionProvider",)
LIMIT = {"float16": 1e-3, "bfloat16": 8e-3}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(options, shape, bias, dtype):
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    inputs, model, expected = case(shape, bias, dtype)
    Y = run(model, inputs, options, CUDA).astype(np.float64)
    assert np.linalg.norm(Y - expected) <= LIMIT[np.dtype(dtype).name] * np.linalg.norm(expected)


@pytest.mark.parametrize("kernel", ["64_1", "64_2", "128_1", "hopper_64", "hopper_128"])
@pytest.mark.parametrize("bias", ["no_bias", "rows"])
@pytest.mark.parametrize("shape", ["vit", "whole_steps", "between_sizes", "long"])
def test_kernels(options, shape, bias, kernel):
    name = f"attention_fp16_{kernel}"
    inputs, model, expected = case(SHAPES[shape], bias, np.float16, compute=name)
    Y = run(model, inputs, options, CUDA).astype(np.float64)
    assert np.linalg.norm(Y - expected) <= LIMIT["float16"] * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("bias", ["no_bias", "rows", "keys"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("shape", KIND_SHAPES.values(), ids=KIND_SHAPES)
def test_kinds(options, shape, kind, bias, dtype):
    inputs, model, expected = case(shape, bias, dtype, kind=kind)
    Y = run(model, inputs, options, CUDA).astype(np.float64)
    assert np.linalg.norm(Y - expected) <= LIMIT[np.dtype(dtype).name] * np.linalg.norm(expected)


@pytest.mark.parametrize("kernel", ["32_1", "32_2", "64_1", "64_2", "128_1", "hopper_64", "hopper_128"])
@pytest.mark.parametrize("kind", ["causal", "decoder_by_sample"])
def test_kernels_of_decoders(options, kind, kernel):
    for batch, length, heads, size in [(1, 517, 4, 64), (2, 130, 4, 48), (2, 65, 4, 32), (3, 128, 4, 16)]:
        shape = (batch, length, heads, min(size, 32) if kernel.startswith("32") else size)
        for bias in ("no_bias", "rows"):
            compute = f"attention_fp16_{kernel}"
            inputs, model, expected = case(shape, bias, np.float16, compute=compute, kind=KINDS[kind])
            Y = run(model, inputs, options, CUDA).astype(np.float64)
            assert np.linalg.norm(Y - expected) <= LIMIT["float16"] * np.linalg.norm(expected)


def test_a_decoder_gives_the_same_numbers_in_every_run(options):
    inputs, model, _ = case(KIND_SHAPES["long"], "rows", np.float16, kind=KINDS["decoder"])
    first = run(model, inputs, options, CUDA)
    assert all(np.array_equal(run(model, inputs, options, CUDA), first) for _ in range(5))


def test_masked_rows_are_zero_and_nan_shows(options):
    inputs, model, _ = case(SHAPES["whole_steps"], "rows", np.float16)
    inputs[1][1, 0, 4] = -np.inf
    inputs[1][1, 0, 77, 2] = np.nan
    Y = run(model, inputs, options, CUDA)
    assert not Y[1, 4].any()
    assert np.isnan(Y[1, 77]).all()
    assert np.isfinite(np.delete(Y, 77, axis=1)).all()


def test_empty_inputs(options):
    (X, values, _), model, _ = case(SHAPES["short"], "rows", np.float16)
    assert run(model, (X[:0], values[:0], None), options, CUDA).shape == (0, 9, 64)


@pytest.mark.parametrize(("size", "reason"), [(12, "no multiple of 8"), (136, "no kernel")])
def test_head_sizes_that_no_kernel_serves_are_refused(options, size, reason):
    inputs, model, _ = case((2, 5, 2, size), "no_bias", np.float16)
    with pytest.raises(Exception, match=reason):
        run(model, inputs, options, CUDA)


def test_a_place_without_rotary_embeddings_asks_for_nothing(options):
    inputs, model, expected = case((2, 5, 2, 24), "no_bias", np.float16)
    model.graph.node[0].input.extend(["", ""])
    Y = run(model, inputs, options, CUDA).astype(np.float64)
    assert np.linalg.norm(Y - expected) <= LIMIT["float16"] * np.linalg.norm(expected)
    model.graph.node[0].input[2] = "X"
    with pytest.raises(Exception, match="head_size is no multiple of 16"):
        run(model, inputs, options, CUDA)
