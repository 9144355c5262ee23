"""DeftGemm on the GPU against float64 arithmetic on the same unpacked operands."""

import ctypes
import itertools
import threading

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from gemm_model import DTYPES, gemm_model, ort_value, reference, run_gemm, to_array

from deftonnx.formats import pack_weight
from deftonnx.formats.activation import ACTIVATIONS

TOLERANCE = {np.float32: 1e-5, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}
CUDA = ("CUDAExecutionProvider",)
# (X's type, format): every route to the tensor core
OPERANDS = [
    (np.float16, "half"),
    (np.float16, "deft16"),
    *((dtype, f"deft8:{e}") for e in range(1, 8) for dtype in DTYPES),
    (ml_dtypes.bfloat16, "deft16"),
    (np.float32, "deft16"),
]
EVEN_SHAPES = [(m, k, n) for m in (1, 5, 16, 64, 200) for k, n in ((16, 16), (64, 48), (208, 272), (1024, 512))]
ODD_SHAPES = [
    (0, 16, 16), (0, 7, 3), (1, 1, 1), (2, 1, 33), (33, 17, 1), (7, 31, 129), (129, 65, 63), (3, 1000, 10),
    (257, 127, 255), (65, 8, 200), (1, 4097, 31), (300, 2, 2),
]  # fmt: skip


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


@pytest.mark.parametrize(("dtype", "name"), OPERANDS, ids=ids)
def test_every_route_and_shape(options, dtype, name):
    for shape in EVEN_SHAPES + ODD_SHAPES:
        X, packed, bias = case(shape, name, dtype)
        check(run_gemm(gemm_model(X, packed, bias), X, None, options, CUDA), reference(X, packed, bias), dtype)


FEW_ROWS = [f"{kind}_{tile}" for kind, tiles in (
    ("small_m", ("8x16", "8x32", "8x64", "16x16", "16x32", "16x64")), ("small_m_cluster", ("8x128", "16x128"))
) for tile in tiles]  # fmt: skip


@pytest.mark.parametrize("kernel", FEW_ROWS)
@pytest.mark.parametrize(
    ("dtype", "name", "prefix"),
    [
        (np.float16, "half", "fp16_fp16"),
        (ml_dtypes.bfloat16, "deft16", "bf16_bf16"),
        (np.float16, "deft8:2", "fp16_u8"),
        (np.float16, "deft8:7", "fp16_u8"),
        (ml_dtypes.bfloat16, "deft8:5", "bf16_u8"),
    ],
    ids=ids,
)
def test_each_kernel_for_few_rows(options, dtype, name, prefix, kernel):
    most_rows = int(kernel.split("_")[-1].split("x")[0])
    for M, K, N in [(1, 16, 1), (most_rows, 2064, 130), (most_rows - 3, 8192, 65), (3, 4096, 300)]:
        X, packed, bias = case((M, K, N), name, dtype)
        model = gemm_model(X, packed, bias, compute=f"{prefix}_{kernel}")
        check(run_gemm(model, X, None, options, CUDA), reference(X, packed, bias), dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "name"), OPERANDS[:3] + OPERANDS[-2:], ids=ids)
def test_epilogue(options, dtype, name, activation):
    for shape in [(48, 64, 96), (5, 33, 7)]:
        X, packed, bias = case(shape, name, dtype)
        residual = np.random.default_rng(0).standard_normal((shape[0], shape[2])).astype(dtype)
        epilogue = {"activation": activation, "alpha": 0.2, "beta": 0.5, "residual": residual}
        Y = run_gemm(gemm_model(X, packed, bias, **epilogue), X, residual, options, CUDA)
        check(Y, reference(X, packed, bias, **epilogue), dtype)


@pytest.mark.parametrize("block", [1, 2, 8, 16, 32, 64, 128])
@pytest.mark.parametrize(("dtype", "name"), OPERANDS[:3] + OPERANDS[-2:], ids=ids)
def test_elimination(options, dtype, name, block):
    for features, N, M in itertools.product((256, 400, 1000, 129), (48, 33), (4, 70)):
        blocks = -(-features // block)
        kept = np.random.default_rng(block).permutation(blocks)[: max(1, blocks // 2)]
        kept = np.sort(kept)  # a short last block stays last
        index = np.concatenate([np.arange(b * block, min(b * block + block, features)) for b in kept])
        X, packed, bias = case((M, index.size, N), name, dtype, features)
        model = gemm_model(X, packed, bias, features=features, block=block, kept=kept.tolist())
        Y = run_gemm(model, X, None, options, CUDA)
        check(Y, reference(X[:, index], packed, bias), dtype)


@pytest.mark.parametrize(
    ("name", "kernel", "block"),
    [
        ("half", "fp16_fp16_tma_kept_128x256x64", 64),
        ("half", "fp16_fp16_tma_kept_64x64x64", 128),
        ("half", "fp16_fp16_tma_kept_128x256x32", 32),
        ("half", "fp16_fp16_tma_kept_128x128x16", 16),
        ("deft8:3", "fp16_u8_tma_kept_128x128x64", 64),
        ("deft8:3", "fp16_u8_tma_kept_128x128x32", 32),
    ],
)
def test_each_kernel_for_kept_blocks(options, name, kernel, block):
    if gpu_capability() != (9, 0):
        pytest.skip("these kernels are compiled for compute capability 9.0")
    features = 2048
    kept = np.sort(np.random.default_rng(block).permutation(features // block)[: features // block // 2])
    index = (kept[:, None] * block + np.arange(block)).ravel()
    X, packed, bias = case((300, index.size, 528), name, np.float16, features)
    model = gemm_model(X, packed, bias, features=features, block=block, kept=kept.tolist(), compute=kernel)
    check(run_gemm(model, X, None, options, CUDA), reference(X[:, index], packed, bias), np.float16)


@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), (2, 1, 5, 64), (1, 0, 64)], ids=str)
def test_ranks(options, shape):
    features = shape[-1]
    X = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
    _, packed, bias = case((1, features, 32), "deft8:4", np.float16)
    check(run_gemm(gemm_model(X, packed, bias), X, None, options, CUDA), reference(X, packed, bias), np.float16)


@pytest.mark.parametrize("name", ["half", "deft8:4"])
def test_offsets_beyond_two_to_the_31(options, name):
    M, K, N = 2**20 + 3, 2064, 16
    rows = np.random.default_rng(2).standard_normal((1009, K)).astype(np.float16)
    X = np.resize(rows, (M, K))
    _, packed, bias = case((1, K, N), name, np.float16)
    Y = run_gemm(gemm_model(X, packed, bias), X, None, options, CUDA)
    expected = np.resize(reference(rows, packed, bias), (M, N))
    check(Y, expected, np.float16)


def session_and_binding(options, X, packed, bias, **provider_options):
    model = gemm_model(X, packed, bias, activation="gelu")
    providers = [("CUDAExecutionProvider", provider_options)]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", onnxruntime.OrtValue.ortvalue_from_numpy(X, "cuda", 0))
    output = onnxruntime.OrtValue.ortvalue_from_shape_and_type([X.shape[0], packed.N], X.dtype, "cuda", 0)
    binding.bind_ortvalue_output("Y", output)
    return session, binding, output


@pytest.mark.parametrize("name", ["half", "deft8:3"])
def test_a_thousand_runs_are_identical_and_graph_capture_works(options, name):
    X, packed, bias = case((100, 1024, 512), name, np.float16)
    session, binding, output = session_and_binding(options, X, packed, bias, enable_cuda_graph="1")
    outputs = set()
    for _ in range(1000):
        session.run_with_iobinding(binding)
        outputs.add(output.numpy().tobytes())
    assert len(outputs) == 1
    check(output.numpy(), reference(X, packed, bias, activation="gelu"), np.float16)


def test_threads_share_a_session(options):
    X, packed, bias = case((1, 512, 256), "deft8:4", np.float16)
    model = gemm_model(X, packed, bias)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(CUDA))
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            x = rng.standard_normal((int(rng.integers(1, 300)), 512)).astype(np.float16)
            (Y,) = session.run_with_ort_values(["Y"], {"X": ort_value(x)})
            try:
                check(to_array(Y), reference(x, packed, bias), np.float16)
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_node_runs_on_the_gpu(options):
    X, packed, bias = case((4, 64, 64), "deft8:4", np.float16)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    run_gemm(gemm_model(X, packed, bias), X, None, options, CUDA)
    with pytest.raises(Exception, match="no kernel 'nonsense'"):
        run_gemm(gemm_model(X, packed, bias, compute="nonsense"), X, None, options, CUDA)
