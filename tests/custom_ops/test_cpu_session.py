"""Sessions on the CPU with the library registered, with the same results."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from gemm_model import DTYPES, gemm_model, reference, run_gemm

from deftonnx.formats import GEMM_FORMAT_NAMES, pack_weight
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


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", ["fp32", *GEMM_FORMAT_NAMES])
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


@pytest.mark.parametrize("output", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_output_type_is_free(options, dtype, output):
    X, packed, bias = case(dtype=dtype)
    model = gemm_model(X, packed, bias, output_dtype=output)
    check(run_gemm(model, X, options=options), reference(X, packed, bias), output)
    residual = np.random.default_rng(0).standard_normal((5, 9)).astype(output)
    model = gemm_model(X, packed, bias, output_dtype=output, residual=residual)
    expected = reference(X, packed, bias, residual=residual)
    check(run_gemm(model, X, residual, options), expected, output)
    check(run_gemm(model, X, residual), expected, output)  # by the function body


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


def test_a_wrong_input_shape_is_an_error_not_a_crash(options):
    X, packed, bias = case()
    model = gemm_model(X, packed, bias)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    with pytest.raises(Exception, match="last axis must have 33"):
        run_gemm(model, X[:, :-1], options=options)


def test_it_stays_loaded_between_sessions(library):
    # else every session would load kernels and make cuDNN's plans again, in device memory that nobody gives back
    program = (
        "import onnxruntime, pathlib, sys\n"
        "options = onnxruntime.SessionOptions()\n"
        "options.register_custom_ops_library(sys.argv[1])\n"
        "del options\n"
        "sys.exit(sys.argv[1] not in pathlib.Path('/proc/self/maps').read_text())\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(library)], check=False).returncode == 0


def test_only_the_entry_point_is_exported(library):
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in symbols.stdout.splitlines()] == ["RegisterCustomOps"]


def test_nothing_of_cuda_is_linked(library):
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    libraries = {line.split("[")[1].split(".")[0] for line in needed.splitlines() if "(NEEDED)" in line}
    assert libraries <= {"libc", "libm", "libdl", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64"}
