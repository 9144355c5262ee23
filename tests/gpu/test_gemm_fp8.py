"""Format fp8: the kernels of FP8 tensor cores by name, the rounding before them, and the kernels for other GPUs."""

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from gemm_model import DTYPES, gemm_model, ort_value, reference, run_gemm
from test_gemm import CUDA, case, gpu_capability

from deftonnx.formats import PackedWeight, pack_weight
from deftonnx.formats.fp8 import round_rows
from deftonnx.formats.packed import padded

TILES = {"128x256": (128, 256), "128x192": (128, 192), "128x128": (128, 128), "64x128": (64, 128)}
TOLERANCE = {np.float32: 1e-3, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}
ONE = 0x38  # the code of 1
EXACT = {np.float32: 1e-5, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}


@pytest.fixture
def hopper():
    if gpu_capability() != (9, 0):
        pytest.skip("these kernels are for compute capability 9.0 alone")


def error(Y, expected):
    return np.linalg.norm(Y.astype(np.float64) - expected) / max(np.linalg.norm(expected), 1e-3)


def normal_case(shape, dtype, features=None):
    """X, packed weight and bias, whose sums are about normal; rows of X have scales of their own."""
    M, K, N = shape
    rng = np.random.default_rng(M * 7919 + K * 31 + N)
    X = (rng.standard_normal((M, features or K)) * 2.0 ** -(np.arange(M) % 7)[:, None]).astype(dtype)
    weight = (rng.standard_normal((K, N)) * K**-0.5).astype(np.float32)
    return X, pack_weight(weight, "fp8"), rng.standard_normal(N).astype(np.float32)


def run(options, kernel, shape, dtype, features=None, index=None, tolerance=TOLERANCE, **attributes):
    """Run one node by the kernel of that name and compare."""
    X, packed, bias = normal_case(shape, dtype, features)
    residual, output = None, attributes.get("output_dtype", dtype)
    if attributes.pop("with_residual", False):
        residual = np.random.default_rng(1).standard_normal((shape[0], shape[2])).astype(output)
    epilogue = {k: v for k, v in attributes.items() if k in ("activation", "alpha", "beta")}
    extra = {"features": features} if features else {}
    model = gemm_model(X, packed, bias, compute=kernel, residual=residual, **extra, **attributes)
    Y = run_gemm(model, X, residual, options, CUDA)
    expected = reference(X if index is None else X[:, index], packed, bias, residual=residual, **epilogue)
    assert (Y.dtype, Y.shape) == (output, expected.shape)
    assert error(Y, expected) <= tolerance[output]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("kernel", TILES)
def test_edges_of_tiles(hopper, options, kernel, dtype):
    rows, columns = TILES[kernel]
    for shape in [
        (1, 1, 1), (rows, 128, columns), (rows + 1, 131, columns + 8), (rows - 1, 448, 2 * columns - 3),
        (2 * rows + 5, 1032, columns + 24), (13 * rows, 72, 11 * columns + 16),
    ]:  # fmt: skip
        run(options, f"fp8_hopper_{kernel}", shape, dtype, activation="relu")


@pytest.mark.parametrize("kernel", ["128x192", "64x128"])
@pytest.mark.parametrize("activation", ["none", "clip", "gelu", "tanh", "silu", "hard_swish", "leaky_relu"])
def test_epilogues(hopper, options, kernel, activation):
    for with_residual in (False, True):
        for output in DTYPES:
            epilogue = {"activation": activation, "alpha": -0.2, "beta": 0.5, "output_dtype": output}
            run(options, f"fp8_hopper_{kernel}", (150, 200, 168), np.float16, with_residual=with_residual, **epilogue)


@pytest.mark.parametrize("block", [1, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("kernel", ["fp8_hopper_128x128", "auto"])
def test_kept_blocks(hopper, options, kernel, block):
    for features, M in ((2048, 130), (1000, 70), (999, 5)):
        blocks = -(-features // block)
        kept = np.sort(np.random.default_rng(block).permutation(blocks)[: max(1, blocks // 2)])
        index = np.concatenate([np.arange(b * block, min(b * block + block, features)) for b in kept])
        shape = (M, index.size, 136)
        run(options, kernel, shape, np.float16, features, index, block=block, kept=kept.tolist())


@pytest.mark.parametrize("K", [4096, 20000, 65536])
def test_sums_are_promoted(hopper, options, K):
    """Without it the error of sums of one sign grows with K, beyond 1e-2 at 65,536 features."""
    rng = np.random.default_rng(K)
    X = rng.uniform(0.5, 1, (130, K)).astype(np.float32)
    packed = pack_weight(rng.uniform(0.5, 1, (K, 136)).astype(np.float32), "fp8")
    model = gemm_model(X, packed, np.zeros(136, np.float32), compute="fp8_hopper_128x128")
    assert error(run_gemm(model, X, None, options, CUDA), reference(X, packed, 0.0)) <= 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", [(1, 64, 33), (7, 4096, 256), (20, 513, 100), (300, 1000, 264), (40, 9000, 64)])
def test_other_kernels_multiply_the_rounded_rows_exactly(options, shape, dtype):
    """As on GPUs without FP8 tensor cores."""
    names = ["simt", *(["bf16_u8_stream_32"] if shape[0] <= 32 and gpu_capability() >= (9, 0) else [])]
    for kernel in names:
        run(options, kernel, shape, dtype, tolerance=EXACT)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("K", [8, 100, 1000, 5000, 40000])
def test_rounding(options, dtype, K):
    """X times one column of ones in a single place reads the rounded X out."""
    rng = np.random.default_rng(K)
    X = (rng.standard_normal((33, K)) * 2.0 ** rng.integers(-12, 8, (33, 1))).astype(dtype)
    X[3] = 0
    columns = rng.permutation(K)[:16]
    codes = np.zeros((columns.size, padded(K)), np.uint8)
    codes[np.arange(columns.size), columns] = ONE
    packed = PackedWeight("fp8", codes, np.ones(columns.size, np.float32), K)
    kernels = ["simt", *(["fp8_hopper_64x128"] if gpu_capability() == (9, 0) else [])]
    for kernel in kernels:
        model = gemm_model(X, packed, np.zeros(columns.size, np.float32), compute=kernel, output_dtype=np.float32)
        assert np.array_equal(run_gemm(model, X, None, options, CUDA), round_rows(X)[:, columns])


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_row_that_is_not_finite_becomes_nan(options, bad):
    X, packed, bias = case((130, 128, 136), "fp8", np.float16)
    X[5, 7] = bad
    for kernel in ("auto", "simt"):
        Y = run_gemm(gemm_model(X, packed, bias, compute=kernel), X, None, options, CUDA)
        assert np.isnan(Y[5]).all()
        assert not np.isnan(np.delete(Y, 5, axis=0)).any()


def test_a_code_that_fp8_has_no_value_for_is_refused(options):
    X, packed, bias = case((2, 32, 4), "fp8", np.float16)
    packed.codes[3, 7] = 0xFF
    with pytest.raises(Exception, match="W holds the code 0x7F or 0xFF"):
        run_gemm(gemm_model(X, packed, bias), X, None, options, CUDA)


@pytest.mark.parametrize("kernel", ["128x256", "128x192", "128x128"])
def test_repeated_runs_are_equal(hopper, options, kernel):
    X, packed, bias = case((500, 2048, 1000), "fp8", np.float16)
    model = gemm_model(X, packed, bias, compute=f"fp8_hopper_{kernel}", activation="silu")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, list(CUDA))
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", ort_value(X))
    first = None
    for _ in range(100):
        binding.bind_output("Y", "cuda")
        session.run_with_iobinding(binding)
        Y = binding.get_outputs()[0].numpy()
        first = Y if first is None else first
        assert np.array_equal(Y, first)
