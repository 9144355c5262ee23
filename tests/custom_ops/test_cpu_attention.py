"""DeftAttention on the CPU: its function body without the library, its kernel with it, and bad nodes refused."""

import subprocess
import sys

import numpy as np
import pytest
from attention_model import BIASES, KIND_SHAPES, KINDS, SHAPES, case, run
from gemm_model import DTYPES
from refusals import refusal, with_attribute

LIMIT = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}

# runs LIBRARY MODEL where there is memory for Y, but not for the threads' work
SCARCE = """
import pathlib, resource, sys
import numpy as np, onnxruntime

options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = False
options.intra_op_num_threads = 2
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
X = np.zeros((2, 1 << 20, 24), np.float32)
session.run(None, {"X": X[:, :2]})
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (128 << 20),) * 2)
try:
    session.run(None, {"X": X})
except Exception as error:
    print(error)
"""


def distance(Y, expected):
    return np.linalg.norm(Y.astype(np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("shape", [s for s in SHAPES.values() if s[0] * s[1] ** 2 * s[2] < 1 << 18], ids=str)
def test_kernel(options, shape, bias):
    for dtype in DTYPES:
        inputs, model, expected = case(shape, bias, dtype)
        assert distance(run(model, inputs, options), expected) <= LIMIT[np.dtype(dtype).name]


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("bias", BIASES)
def test_function_body(bias, opset):
    for dtype in (np.float32, np.float16):
        inputs, model, expected = case(SHAPES["short"], bias, dtype, opset=opset)
        assert distance(run(model, inputs), expected) <= LIMIT[np.dtype(dtype).name]


@pytest.mark.parametrize("with_library", [False, True])
@pytest.mark.parametrize("bias", ["no_bias", "rows"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kinds(options, kind, bias, with_library):
    for dtype in (np.float32, np.float16):
        for shape in ("one_key", "between_sizes", "between_large_sizes"):
            inputs, model, expected = case(KIND_SHAPES[shape], bias, dtype, kind=kind)
            Y = run(model, inputs, options if with_library else None)
            assert distance(Y, expected) <= LIMIT[np.dtype(dtype).name]


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_function_body_of_a_decoder(opset):
    inputs, model, expected = case(KIND_SHAPES["one_key"], "rows", np.float32, opset=opset, kind=KINDS["decoder"])
    assert distance(run(model, inputs), expected) <= LIMIT["float32"]


@pytest.mark.parametrize("with_library", [False, True])
def test_a_row_of_masked_keys_is_zero(options, with_library):
    inputs, model, _ = case(SHAPES["short"], "rows", np.float32)
    inputs[1][1, 0, 4] = -np.inf
    Y = run(model, inputs, options if with_library else None)
    assert not Y[1, 4].any()
    assert Y[1, 3].any()


@pytest.mark.parametrize("with_library", [False, True])
def test_a_row_of_the_lowest_number_is_the_mean(options, with_library):  # as exporters of PyTorch mask
    inputs, model, _ = case(SHAPES["short"], "rows", np.float32)
    inputs[1][1, 0, 4] = np.finfo(np.float32).min
    Y = run(model, inputs, options if with_library else None)
    np.testing.assert_allclose(Y[1, 4], inputs[0][1].mean(0)[-Y.shape[-1] :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_library", [False, True])
def test_a_score_that_is_not_a_number_shows(options, with_library):
    inputs, model, _ = case(SHAPES["short"], "rows", np.float32)
    inputs[1][1, 0, 4, 2] = np.nan
    Y = run(model, inputs, options if with_library else None)
    assert np.isnan(Y[1, 4]).all()
    assert np.isfinite(Y[1, 3]).all()


def test_an_empty_batch(options):
    (X, _, _), model, _ = case(SHAPES["short"], "no_bias", np.float32)
    assert run(model, (X[:0], None, None), options).shape == (0, 9, 64)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("num_heads", 0, "out of range"),
        ("head_size", None, "'head_size' is missing"),
        ("num_kv_heads", 3, "no multiple of num_kv_heads"),
        ("scale", None, "'scale' is missing"),
        ("output_type", 16, "output_type"),
    ],
)
def test_bad_attributes_are_refused(options, attribute, value, reason):
    _, model, _ = case(SHAPES["short"], "no_bias", np.float32)
    assert reason in refusal(with_attribute(model, attribute, value), options)


def test_wrong_inputs_are_errors_not_crashes(options):
    (X, values, rotary), model, _ = case(SHAPES["short"], "rows", np.float32, kind=KINDS["decoder"])
    with pytest.raises(Exception, match="must have 96"):
        run(model, (X[..., 1:], values, rotary), options)
    with pytest.raises(Exception, match="bias has shape"):
        run(model, (X, values[..., 1:], rotary), options)
    for wrong in (rotary[1:], rotary[:, 1:]):
        with pytest.raises(Exception, match="rotary has shape"):
            run(model, (X, values, wrong), options)


def test_places_of_inputs_that_are_left_out(options):
    inputs, model, Y = case((2, 5, 2, 7), "no_bias", np.float32)
    model.graph.node[0].input.extend(["", ""])
    np.testing.assert_allclose(run(model, inputs, options), Y, rtol=1e-4, atol=1e-5)
    model.graph.node[0].input[2] = "X"
    assert "head_size is not even" in refusal(model, options)


def test_too_little_memory_is_an_error_not_a_crash(library, tmp_path):
    _, model, _ = case((4, 2, 1, 8), "no_bias", np.float32)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    command = [sys.executable, "-c", SCARCE, library, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "DeftAttention" in done.stdout
    assert "bad_alloc" in done.stdout
