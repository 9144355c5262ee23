"""kernels/gemm_hopper_codes.cu by kernel name: tile edges, every E, epilogues, kept blocks, repeated runs."""

import ml_dtypes
import numpy as np
import pytest
from gemm_model import gemm_model, reference, run_gemm
from test_gemm import CUDA, case, check, check_every_code, check_kernel, check_repeats, gpu_capability

from deftonnx.formats.packed import PackedWeight

X_TYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
TILES = {
    "256x128": (256, 128), "256x128_columns": (256, 256), "192x128": (192, 128), "128x128": (128, 128),
    "128x64_halves": (128, 64), "64x64": (64, 64),
}  # fmt: skip
SPLITS = [(256, 128, 2), (192, 128, 2), (128, 128, 2), (64, 64, 2), (64, 64, 4)]


@pytest.fixture(autouse=True)
def hopper(options):
    if gpu_capability() != (9, 0):
        pytest.skip("these kernels are for compute capability 9.0 alone")


def run(options, kernel, shape, prefix="fp16", exponent_bits=4, features=None, index=None, **attributes):
    """Run one node by the kernel of that tile and compare."""
    operands = X_TYPES[prefix], f"deft8:{exponent_bits}"
    check_kernel(options, f"{prefix}_u8_hopper_{kernel}", shape, *operands, features, index, **attributes)


@pytest.mark.parametrize("prefix", X_TYPES)
@pytest.mark.parametrize("kernel", TILES)
def test_edges_of_tiles(options, kernel, prefix):
    rows, columns = TILES[kernel]
    for shape in [
        (1, 8, 1), (rows, 64, columns), (rows + 1, 72, columns + 8), (rows - 1, 448, 2 * columns - 3),
        (2 * rows + 5, 1032, 3 * columns), (13 * rows, 72, 11 * columns + 16),
    ]:  # fmt: skip
        run(options, kernel, shape, prefix, activation="relu")


@pytest.mark.parametrize("kernel", TILES)
@pytest.mark.parametrize("exponent_bits", range(1, 8))
def test_every_format(options, kernel, exponent_bits):
    for prefix in X_TYPES:
        run(options, kernel, (140, 520, 264), prefix, exponent_bits)


@pytest.mark.parametrize("prefix", X_TYPES)
@pytest.mark.parametrize("exponent_bits", range(1, 8))
def test_every_code(options, exponent_bits, prefix):
    check_every_code(options, f"{prefix}_u8_hopper_64x64", exponent_bits, X_TYPES[prefix])


@pytest.mark.parametrize(("rows", "columns", "splits"), SPLITS)
def test_shared_out_K(options, rows, columns, splits):
    kernel = f"{rows}x{columns}_split{splits}"
    for shape in [(1, 512, 8), (rows + 1, 520, columns + 5), (2 * rows, 4096, 4 * columns), (3, 1000, 1000)]:
        run(options, kernel, shape, exponent_bits=7, activation="gelu")
        run(options, kernel, shape, "bf16", with_residual=True)


@pytest.mark.parametrize("prefix", X_TYPES)
@pytest.mark.parametrize("tile", [name for name in TILES if "columns" not in name])
def test_rounds_and_the_rest_by_another_kernel(options, tile, prefix):
    for shape, how in (((300, 72, 8968), {"activation": "gelu"}), ((270, 1040, 8971), {"with_residual": True})):
        run(options, f"{tile}_rounds", shape, prefix, **how)


@pytest.mark.parametrize("kernel", ["256x128", "192x128", "128x64_halves", "64x64"])
@pytest.mark.parametrize("activation", ["none", "clip", "gelu", "tanh", "silu", "hard_swish", "leaky_relu"])
def test_epilogues(options, kernel, activation):
    epilogue = {"activation": activation, "alpha": -0.2, "beta": 0.5}
    for output in (np.float16, np.float32, ml_dtypes.bfloat16):
        run(options, kernel, (150, 200, 168), output_dtype=output, **epilogue)
    run(options, kernel, (150, 200, 168), with_residual=True, **epilogue)


@pytest.mark.parametrize("block", [8, 16, 32, 64, 256])
@pytest.mark.parametrize("kernel", ["256x128_columns", "192x128", "128x128", "128x64_halves", "64x64_split2"])
def test_kept_blocks(options, kernel, block):
    for features, M in ((2048, 300), (1000, 70), (2056, 131)):
        blocks = -(-features // block)
        kept = np.sort(np.random.default_rng(block).permutation(blocks)[: max(1, blocks // 2)])
        index = np.concatenate([np.arange(b * block, min(b * block + block, features)) for b in kept])
        if index.size <= 64 and "split" in kernel:
            continue
        run(options, kernel, (M, index.size, 528), "bf16", 4, features, index, block=block, kept=kept.tolist())


@pytest.mark.parametrize("compute", ["auto", "packed"])
@pytest.mark.parametrize("exponent_bits", [6, 7])
def test_wide_rows_stay_exact(options, exponent_bits, compute):
    """One weight is 2^30 times the others, which are all that X multiplies: nothing may be lost."""
    K, N = 512, 96
    shift, largest = 7 - exponent_bits, (1 << exponent_bits) - 1
    codes = np.full((N, K), largest - 30 << shift, np.uint8)
    codes[:, 0] = largest << shift
    packed = PackedWeight(f"deft8:{exponent_bits}", codes, np.full(N, 1e-9, np.float32), K)
    X = np.random.default_rng(4).standard_normal((70, K)).astype(np.float16)
    X[:, 0] = 0
    bias = np.zeros(N, np.float32)
    Y = run_gemm(gemm_model(X, packed, bias, output_dtype=np.float32, compute=compute), X, None, options, CUDA)
    check(Y, reference(X, packed, bias), np.float32)


@pytest.mark.parametrize("kernel", ["256x128_columns", "192x128", "128x128_split2", "128x64_halves", "64x64_split4"])
def test_repeated_runs_are_equal(options, kernel):
    X, packed, bias = case((500, 2048, 1000), "deft8:6", np.float16)
    model = gemm_model(X, packed, bias, compute=f"fp16_u8_hopper_{kernel}", activation="silu")
    check_repeats(options, model, X, 100)
