"""Format fp8: the kernels of FP8 tensor cores by name, the rounding before them, and the kernels for other GPUs."""

import ml_dtypes
import numpy as np
import pytest
from gemm_cases import Case, failure, run_cases
from gemm_model import DTYPES, gemm_model, reference, run_gemm
from test_gemm import CUDA, check_repeats, gpu_capability

from deftonnx.formats import PackedWeight, pack_weight
from deftonnx.formats.activation import ACTIVATIONS
from deftonnx.formats.fp8 import round_rows
from deftonnx.formats.packed import padded

TILES = {"128x256": (128, 256), "128x192": (128, 192), "128x128": (128, 128), "64x128": (64, 128)}
ONE = 0x38  # the code of 1
EXACT = {np.float32: 1e-5, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}


@pytest.fixture
def hopper():
    if gpu_capability() != (9, 0):
        pytest.skip("these kernels are for compute capability 9.0 alone")


def case(kernel, shape, dtype, output=None, *, activation="none", with_residual=False, block=0, kept=None):
    """A node whose sums are about normal; rows of X have scales of their own. shape: M, X's features, N."""
    M, features, N = shape
    rng = np.random.default_rng(M * 7919 + features * 31 + N)
    X = (rng.standard_normal((M, features)) * 2.0 ** -(np.arange(M) % 7)[:, None]).astype(dtype)
    blocks = [] if kept is None else [np.arange(b * block, min(b * block + block, features)) for b in kept]
    index = np.concatenate(blocks) if blocks else np.arange(features)
    packed = pack_weight((rng.standard_normal((index.size, N)) * index.size**-0.5).astype(np.float32), "fp8")
    residual = rng.standard_normal((M, N)).astype(output or dtype) if with_residual else None
    row = {"output": output or dtype, "activation": activation, "block": block}
    return Case(row, kernel, X, kept, index, packed, rng.standard_normal(N).astype(np.float32), residual)


def run(options, cases):
    return zip(cases, run_cases(cases, options, "CUDAExecutionProvider"), strict=True)


def check(options, cases):
    assert not [f for case, Y in run(options, cases) if (f := failure(case, Y))]


def error(Y, expected):
    return np.linalg.norm(Y.astype(np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("kernel", TILES)
def test_edges_of_tiles(hopper, options, kernel):
    rows, columns = TILES[kernel]
    shapes = [
        (1, 1, 1), (rows, 128, columns), (rows + 1, 131, columns + 8), (rows - 1, 448, 2 * columns - 3),
        (2 * rows + 5, 1032, columns + 24), (13 * rows, 72, 11 * columns + 16),
    ]  # fmt: skip
    check(options, [case(f"fp8_hopper_{kernel}", shape, d, activation="relu") for shape in shapes for d in DTYPES])


@pytest.mark.parametrize("kernel", TILES)
def test_epilogues(hopper, options, kernel):
    check(
        options,
        [
            case(f"fp8_hopper_{kernel}", (150, 200, N), np.float16, output, activation=name, with_residual=residual)
            for name in ACTIVATIONS
            for residual in (False, True)
            for output in DTYPES
            for N in (168, 97)
        ],
    )


@pytest.mark.parametrize("kernel", ["fp8_hopper_128x128", "auto"])
@pytest.mark.parametrize("block", [1, 4, 8, 16, 64, 256])
def test_kept_blocks(hopper, options, kernel, block):
    cases = []
    for features, M in ((2048, 130), (1000, 70), (999, 5)):
        blocks = -(-features // block)
        kept = np.sort(np.random.default_rng(block).permutation(blocks)[: max(1, blocks // 2)]).tolist()
        cases += [case(kernel, (M, features, 136), d, block=block, kept=kept) for d in DTYPES]
    check(options, cases)


@pytest.mark.parametrize("K", [4096, 65536])
def test_sums_are_promoted(hopper, options, K):
    """Sums of one sign: left to the tensor core, their error would grow with K."""
    rng = np.random.default_rng(K)
    X = rng.uniform(0.5, 1, (130, K)).astype(np.float32)
    packed = pack_weight(rng.uniform(0.5, 1, (K, 136)).astype(np.float32), "fp8")
    expected = reference(X, packed, 0.0)
    for kernel in TILES:
        model = gemm_model(X, packed, np.zeros(136, np.float32), compute=f"fp8_hopper_{kernel}")
        assert error(run_gemm(model, X, None, options, CUDA), expected) <= 2e-4


def test_other_kernels_multiply_the_rounded_rows_exactly(options):
    """As on GPUs without FP8 tensor cores."""
    shapes = [(1, 64, 33), (7, 4096, 256), (20, 513, 100), (300, 1000, 264), (40, 9000, 64)]
    cases = [case("simt", shape, dtype) for shape in shapes for dtype in DTYPES]
    if gpu_capability() >= (9, 0):
        cases += [case("bf16_u8_stream_32", shape, dtype) for shape in shapes[:3] for dtype in DTYPES]
    for one, Y in run(options, cases):
        assert error(Y, one.expected()) <= EXACT[one.output_type]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_rounding(options, dtype):
    """X times ones, each in a place of its own, reads the rounded X out."""
    cases = []
    for K in (8, 100, 1000, 5000, 40000):
        rng = np.random.default_rng(K)
        X = (rng.standard_normal((33, K)) * 2.0 ** rng.integers(-12, 8, (33, 1))).astype(dtype)
        X[3] = 0
        columns = rng.permutation(K)[:16]
        codes = np.zeros((columns.size, padded(K)), np.uint8)
        codes[np.arange(columns.size), columns] = ONE
        packed = PackedWeight("fp8", codes, np.ones(columns.size, np.float32), K)
        row = {"output": np.float32, "activation": "none", "block": 0}
        kernels = ["simt", *(["fp8_hopper_64x128"] if gpu_capability() == (9, 0) else [])]
        bias = np.zeros(columns.size, np.float32)
        cases += [(Case(row, k, X, None, np.arange(K), packed, bias, None), columns) for k in kernels]
    for (one, Y), (_, columns) in zip(run(options, [c for c, _ in cases]), cases, strict=True):
        assert np.array_equal(Y, round_rows(one.X)[:, columns])


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_row_that_is_not_finite_becomes_nan(options, bad):
    one = case("auto", (130, 128, 136), np.float16)
    one.X[5, 7] = bad
    for kernel in ("auto", "simt"):
        Y = run_gemm(gemm_model(one.X, one.packed, one.bias, compute=kernel), one.X, None, options, CUDA)
        assert np.isnan(Y[5]).all()
        assert not np.isnan(np.delete(Y, 5, axis=0)).any()


def test_a_code_that_fp8_has_no_value_for_is_refused(options):
    one = case("auto", (2, 32, 4), np.float16)
    one.packed.codes[3, 7] = 0xFF
    with pytest.raises(Exception, match="W holds the code 0x7F or 0xFF"):
        run_gemm(gemm_model(one.X, one.packed, one.bias), one.X, None, options, CUDA)


@pytest.mark.parametrize("kernel", TILES)
def test_repeated_runs_are_equal(hopper, options, kernel):
    one = case("", (500, 2048, 1000), np.float16)
    model = gemm_model(one.X, one.packed, one.bias, compute=f"fp8_hopper_{kernel}", activation="silu")
    check_repeats(options, model, one.X, 100)
