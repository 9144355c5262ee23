"""Kernels of DeftGemm by name, ranks, and where the node runs; test_gemm_matrix.py has the rest."""

import ctypes

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from gemm_model import gemm_model, ort_value, reference, run_gemm

from deftonnx.formats import pack_weight
from deftonnx.formats.packed import PackedWeight

TOLERANCE = {np.float32: 1e-5, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}
CUDA = ("CUDAExecutionProvider",)


def ids(value):
    return getattr(value, "__name__", str(value)) if isinstance(value, type) else str(value)


def case(shape, name, dtype, features=None):
    M, K, N = shape
    rng = np.random.default_rng(M * 7919 + K * 31 + N)
    X = rng.standard_normal((M, features or K)).astype(dtype)
    packed = pack_weight(rng.standard_normal((K, N)).astype(np.float32), name)
    return X, packed, rng.standard_normal(N).astype(np.float32)


def gpu_capability():
    """Major and minor compute capability of the first GPU, asked of the driver."""
    driver = ctypes.CDLL("libcuda.so.1")
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    return major.value, minor.value


def check(Y, expected, dtype):
    assert Y.dtype == dtype
    assert Y.shape == expected.shape
    assert np.linalg.norm(Y.astype(np.float64) - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


def check_kernel(options, kernel, shape, dtype, name, features=None, index=None, with_residual=False, **attributes):
    """Run one node, of weights in format `name`, by the kernel of that name and compare.

    `index`: the columns of X that are multiplied, of `features`; all without.
    """
    X, packed, bias = case(shape, name, dtype, features)
    residual = None
    if with_residual:
        residual = np.random.default_rng(1).standard_normal((shape[0], shape[2])).astype(dtype)
    epilogue = {k: v for k, v in attributes.items() if k in ("activation", "alpha", "beta")}
    extra = {"features": features} if features else {}
    model = gemm_model(X, packed, bias, compute=kernel, residual=residual, **extra, **attributes)
    Y = run_gemm(model, X, residual, options, CUDA)
    seen = X if index is None else X[:, index]
    check(Y, reference(seen, packed, bias, residual=residual, **epilogue), attributes.get("output_dtype", dtype))


def check_every_code(options, kernel, exponent_bits, dtype):
    """Output feature n has the single weight of code n: Y is the weight, rounded."""
    largest_code = {4: 0x7E, 5: 0x7B}.get(exponent_bits, 0x7F)  # what beyond is never packed
    magnitudes = np.minimum(np.arange(256) & 0x7F, largest_code)
    codes = np.diag(magnitudes | np.arange(256) & 0x80).astype(np.uint8)
    bias = (1 << exponent_bits - 1) - 1
    largest = 2.0 ** ((1 << exponent_bits) - 1 - bias)
    packed = PackedWeight(f"deft8:{exponent_bits}", codes, np.full(256, 1 / largest, np.float32), 256)
    X = np.ones((70, 256), dtype)
    model = gemm_model(X, packed, np.zeros(256, np.float32), output_dtype=np.float32, compute=kernel)
    Y = run_gemm(model, X, None, options, CUDA)
    assert np.array_equal(Y, reference(X, packed, np.zeros(256)).astype(np.float32))


def check_repeats(options, model, X, runs):
    """So many runs give the same bits."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, list(CUDA))
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", ort_value(X))
    first = None
    for _ in range(runs):
        binding.bind_output("Y", "cuda")
        session.run_with_iobinding(binding)
        Y = binding.get_outputs()[0].numpy()
        first = Y if first is None else first
        assert np.array_equal(Y, first)


# kernels for few rows: those before compute capability 9.0, and those from there on
FEW_ROWS = [f"small_m_{tile}" for tile in ("8x16", "8x32", "8x64", "16x16", "16x32", "16x64")]
STREAM = ["stream_8", "stream_16", "stream_32"]


@pytest.mark.parametrize("kernel", FEW_ROWS + STREAM)
@pytest.mark.parametrize(
    ("dtype", "name", "prefix"),
    [
        (np.float16, "half", "fp16_fp16"),
        (ml_dtypes.bfloat16, "deft16", "bf16_bf16"),
        *((np.float16, f"deft8:{e}", "fp16_u8") for e in range(1, 8)),
        (ml_dtypes.bfloat16, "deft8:1", "bf16_u8"),
        (ml_dtypes.bfloat16, "deft8:7", "bf16_u8"),
    ],
    ids=ids,
)
def test_each_kernel_for_few_rows(options, dtype, name, prefix, kernel):
    if (kernel in STREAM) != (gpu_capability() >= (9, 0)):
        pytest.skip("a kernel for another GPU")
    most_rows = int(kernel.split("_")[-1].split("x")[0])
    shapes = [(1, 16, 1), (most_rows, 2064, 130), (most_rows - 3, 8192, 65), (3, 4096, 300), (most_rows, 400, 31)]
    for M, K, N in shapes:
        X, packed, bias = case((M, K, N), name, dtype)
        model = gemm_model(X, packed, bias, compute=f"{prefix}_{kernel}")
        check(run_gemm(model, X, None, options, CUDA), reference(X, packed, bias), dtype)


@pytest.mark.parametrize("M", [5, 13])
@pytest.mark.parametrize(("K", "N"), [(64, 34000), (4112, 2080), (6160, 520), (2056, 3000), (2056, 5000), (2056, 9000)])
def test_few_rows_in_waves_and_clusters(options, K, N, M):
    X, packed, bias = case((M, K, N), "half", np.float16)
    outputs = {run_gemm(gemm_model(X, packed, bias), X, None, options, CUDA).tobytes() for _ in range(5)}
    assert len(outputs) == 1
    check(np.frombuffer(outputs.pop(), np.float16).reshape(M, N), reference(X, packed, bias), np.float16)


@pytest.mark.parametrize("name", ["half", "deft8:3", "deft8:6"])
@pytest.mark.parametrize("M", [1, 8, 9, 16, 17, 32, 33])
def test_few_rows_by_default(options, name, M):
    for K, N in [(8, 40), (24, 33), (1032, 2080), (4096, 520)]:
        X, packed, bias = case((M, K, N), name, np.float16)
        residual = np.random.default_rng(M).standard_normal((M, N)).astype(np.float16)
        Y = run_gemm(gemm_model(X, packed, bias, residual=residual, activation="gelu"), X, residual, options, CUDA)
        check(Y, reference(X, packed, bias, residual=residual, activation="gelu"), np.float16)


@pytest.mark.parametrize("block", [8, 64])
@pytest.mark.parametrize(
    ("name", "w_type"), [("deft16", "bf16"), ("deft8:3", "u8"), ("fp32", "fp32"), ("deft16q", "u32")]
)
def test_one_kernel_for_all_features_and_for_kept_blocks(options, name, w_type, block):
    compute = f"fp32_{w_type}_aligned_kept_64x64x32"
    features = 2048
    kept = np.sort(np.random.default_rng(block).permutation(features // block)[: features // block // 2])
    index = (kept[:, None] * block + np.arange(block)).ravel()
    X, packed, bias = case((300, index.size, 528), name, np.float32, features)
    model = gemm_model(X, packed, bias, features=features, block=block, kept=kept.tolist(), compute=compute)
    check(run_gemm(model, X, None, options, CUDA), reference(X[:, index], packed, bias), np.float32)
    X = X[:, index]
    model = gemm_model(X, packed, bias, compute=compute)
    check(run_gemm(model, X, None, options, CUDA), reference(X, packed, bias), np.float32)


@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), (2, 1, 5, 64), (1, 0, 64)], ids=str)
def test_ranks(options, shape):
    features = shape[-1]
    X = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
    _, packed, bias = case((1, features, 32), "deft8:4", np.float16)
    check(run_gemm(gemm_model(X, packed, bias), X, None, options, CUDA), reference(X, packed, bias), np.float16)


def test_the_node_runs_on_the_gpu(options):
    X, packed, bias = case((4, 64, 64), "deft8:4", np.float16)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    run_gemm(gemm_model(X, packed, bias), X, None, options, CUDA)


@pytest.mark.parametrize("name", ["deft16", "deft8:6", "deft8:7"])
@pytest.mark.parametrize("M", [4, 100])
def test_ranges_beyond_float16_s_under_float16(options, name, M):
    rng = np.random.default_rng(M)
    exponents = rng.integers(-60, 60, 48)
    weight = np.ldexp(rng.standard_normal((256, 48)), exponents[None] - rng.integers(0, 20, (256, 1))).astype(
        np.float32
    )
    X = rng.standard_normal((M, 256)).astype(np.float16)
    packed, bias = pack_weight(weight, name), np.zeros(48, np.float32)
    Y = run_gemm(gemm_model(X, packed, bias, output_dtype=np.float32), X, None, options, CUDA)
    norms = np.linalg.norm(Y - reference(X, packed, bias), axis=0) / np.linalg.norm(reference(X, packed, bias), axis=0)
    assert norms.max() <= TOLERANCE[np.float32]
