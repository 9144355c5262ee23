"""Sessions on the CPU with the library registered: the same results, and bad nodes refused at creation."""

import subprocess

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from gemm_model import DTYPES, gemm_model, reference, run_gemm

from deftonnx.formats import FORMAT_NAMES, pack_weight
from deftonnx.formats.activation import ACTIVATIONS

TOLERANCE = {np.float32: 1e-6, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}


def case(M=5, K=33, N=9, name="deft8:4", dtype=np.float32):
    rng = np.random.default_rng(M * 1000 + K * 10 + N)
    X = rng.standard_normal((M, K)).astype(dtype)
    packed = pack_weight(rng.standard_normal((K, N)).astype(np.float32), name)
    return X, packed, rng.standard_normal(N).astype(np.float32)


def check(Y, expected, dtype):
    assert Y.dtype == dtype
    assert Y.shape == expected.shape
    assert np.linalg.norm(Y.astype(np.float64) - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


def with_attribute(model, name, value):
    """`model` with one attribute of its DeftGemm replaced, or removed if value is None."""
    node = model.graph.node[0]
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(name, value))
    return model


def refusal(model, options):
    with pytest.raises(Exception, match="DeftGemm") as caught:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_formats(options, name, dtype):
    X, packed, bias = case(name=name, dtype=dtype)
    check(run_gemm(gemm_model(X, packed, bias), X, options=options), reference(X, packed, bias), dtype)


@pytest.mark.parametrize(
    "shape", [(0, 8, 4), (1, 1, 1), (2, 16, 1), (3, 1, 7), (13, 300, 31), (97, 257, 16), (400, 40, 50)], ids=str
)
def test_shapes(options, shape):
    X, packed, bias = case(*shape)
    check(run_gemm(gemm_model(X, packed, bias), X, options=options), reference(X, packed, bias), np.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(options, activation, dtype):
    X, packed, bias = case(dtype=dtype)
    residual = np.random.default_rng(0).standard_normal((5, 9)).astype(dtype)
    epilogue = {"activation": activation, "alpha": 0.2, "beta": 0.5, "residual": residual}
    Y = run_gemm(gemm_model(X, packed, bias, **epilogue), X, residual, options)
    check(Y, reference(X, packed, bias, **epilogue), dtype)


def test_elimination(options):
    X, _, bias = case(K=40)
    packed = pack_weight(np.random.default_rng(1).standard_normal((24, 9)).astype(np.float32), "deft16")
    model = gemm_model(X, packed, bias, features=40, block=16, kept=[1, 2])
    check(run_gemm(model, X, options=options), reference(X[:, 16:], packed, bias), np.float32)


def test_threads_do_not_change_a_bit(library):
    X, packed, bias = case(200, 520, 70)
    model = gemm_model(X, packed, bias, activation="gelu")
    results = []
    for threads in (1, 4):
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = threads
        session_options.register_custom_ops_library(library)
        results.append(run_gemm(model, X, options=session_options))
    check(results[0], reference(X, packed, bias, activation="gelu"), np.float32)
    assert np.array_equal(*results)


def test_subnormal_halves_round_alike(options):
    X = np.array([[1.0]], np.float16) * np.float16(2.0**-14)
    steps = np.linspace(0, 1, 513, dtype=np.float32)[None]
    packed = pack_weight(steps, "deft16")
    Y = run_gemm(gemm_model(X, packed, np.zeros(513, np.float32)), X, options=options)
    expected = reference(X, packed, 0.0).astype(np.float16)
    assert np.array_equal(Y.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("format", "deft9", "unknown format 'deft9'"),
        ("format", "deft8:8", "unknown format 'deft8:8'"),
        ("format", "deft16", "type of input W does not match"),
        ("format", None, "'format' is missing"),
        ("layout", 2, "layout version 2"),
        ("activation", "softmax", "unknown activation 'softmax'"),
        ("K", 32, "features and K differ"),
        ("K", 0, "K = 0 is out of range"),
        ("N", 8, "expected (8, 48)"),
        ("N", "nine", "'N' is missing or of the wrong type"),
        ("block", 3, "not a power of two"),
        ("block", 16, "kept"),
        ("features", 40, "features and K differ"),
        ("output_type", 10, "output_type"),
        ("alpha", None, "'alpha' is missing"),
    ],
)
def test_bad_attributes_are_refused(options, attribute, value, reason):
    model = with_attribute(gemm_model(*case()), attribute, value)
    message = refusal(model, options)
    assert reason in message
    assert "'layer'" in message


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ([0, 3], "kept block 3 is outside the 40 features"),
        ([-1, 0], "kept block -1"),
        ([2, 0], "must come last"),
        ([0, 1], "hold 32 features, K is 24"),
        ([2], "expected (2)"),
    ],
)
def test_bad_kept_blocks_are_refused(options, kept, reason):
    _, packed, bias = case(K=24)
    model = gemm_model(np.zeros((5, 40), np.float32), packed, bias, features=40, block=16, kept=kept)
    assert reason in refusal(model, options)


@pytest.mark.parametrize("name", ["W", "W_scale", "bias"])
def test_operands_must_be_initializers(options, name):
    model = gemm_model(*case())
    tensor = next(t for t in model.graph.initializer if t.name == name)
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    model.graph.initializer.remove(tensor)
    assert "must be an initializer" in refusal(model, options)


def test_a_wrong_input_shape_is_an_error_not_a_crash(options):
    X, packed, bias = case()
    model = gemm_model(X, packed, bias)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    with pytest.raises(Exception, match="last axis must have 33"):
        run_gemm(model, X[:, :-1], options=options)


def test_only_the_entry_point_is_exported(library):
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in symbols.stdout.splitlines()] == ["RegisterCustomOps"]


def test_nothing_of_cuda_is_linked(library):
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    libraries = {line.split("[")[1].split(".")[0] for line in needed.splitlines() if "(NEEDED)" in line}
    assert libraries <= {"libc", "libm", "libdl", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64"}
