"""kernels/gemm_hopper.cu by kernel name: shapes at the edges of its tiles, epilogues, kept blocks, repeated runs."""

import ml_dtypes
import numpy as np
import pytest
from gemm_model import gemm_model, reference, run_gemm
from test_gemm import CUDA, case, check_kernel, check_repeats, gpu_capability

from deftonnx.formats import pack_weight

OPERANDS = {"fp16": (np.float16, "half"), "bf16": (ml_dtypes.bfloat16, "deft16")}
TILES = {
    "128x256": (128, 256), "128x256_rows": (256, 256), "128x256_columns": (128, 512),
    "128x192_turns": (128, 192), "128x192_turns_columns": (128, 384), "192x128": (192, 128),
    "128x128_turns": (128, 128), "128x128_turns_rows": (256, 128),
    **{f"{rows}x128_transposed": (rows, 128) for rows in range(80, 209, 16)},
    "128x128_turns_columns": (128, 256), "64x128": (64, 128), "64x64": (64, 64),
}  # fmt: skip
SPLITS = {"128x64": (128, 64, (2,)), "64x128": (64, 128, (2,)), "64x64": (64, 64, (2, 4))}


@pytest.fixture(autouse=True)
def hopper(options):
    if gpu_capability() != (9, 0):
        pytest.skip("these kernels are for compute capability 9.0 alone")


def run(options, kernel, shape, prefix="fp16", features=None, index=None, **attributes):
    """Run one node by the kernel of that tile and compare."""
    check_kernel(options, f"{prefix}_{prefix}_hopper_{kernel}", shape, *OPERANDS[prefix], features, index, **attributes)


@pytest.mark.parametrize("prefix", OPERANDS)
@pytest.mark.parametrize("kernel", TILES)
def test_edges_of_tiles(options, kernel, prefix):
    rows, columns = TILES[kernel]
    for shape in [
        (1, 8, 1), (rows, 64, columns), (rows + 1, 72, columns + 8), (rows - 1, 448, 2 * columns - 3),
        (2 * rows + 5, 1032, 3 * columns), (13 * rows, 72, 11 * columns + 16),
    ]:  # fmt: skip
        run(options, kernel, shape, prefix, activation="relu")


@pytest.mark.parametrize(("tile", "splits"), [(t, s) for t, (_, _, all_splits) in SPLITS.items() for s in all_splits])
def test_shared_out_K(options, tile, splits):
    rows, columns, _ = SPLITS[tile]
    for shape in [(1, 512, 8), (rows + 1, 520, columns + 5), (2 * rows, 4096, 4 * columns), (3, 1000, 1000)]:
        run(options, f"{tile}_split{splits}", shape, activation="gelu")
        run(options, f"{tile}_split{splits}", shape, "bf16", with_residual=True)


@pytest.mark.parametrize(
    "kernel", ["128x256", "128x192_turns", "192x128", "144x128_transposed", "128x128_turns_rows", "64x64"]
)
@pytest.mark.parametrize("activation", ["none", "clip", "gelu", "tanh", "silu", "hard_swish", "leaky_relu"])
def test_epilogues(options, kernel, activation):
    for with_residual in (False, True):
        for output in (np.float16, np.float32, ml_dtypes.bfloat16):
            epilogue = {"activation": activation, "alpha": -0.2, "beta": 0.5}
            if with_residual and output is not np.float16:
                continue
            run(options, kernel, (150, 200, 168), with_residual=with_residual, output_dtype=output, **epilogue)


@pytest.mark.parametrize("kernel", ["128x192_turns", "128x128_turns", "64x128", "64x128_split2", "64x64_split4"])
def test_gelu_element_by_element(options, kernel):
    """Its approximation for Y in 16 bits is as near as 16 bits show, and ends in zeros."""
    Z = np.linspace(-40, 40, 70 * 64).reshape(70, 64).astype(np.float16)
    X = np.pad(Z, [(0, 0), (0, 192)])
    packed = pack_weight(np.eye(256, 64, dtype=np.float32), "half")
    bias = np.zeros(64, np.float32)
    model = gemm_model(X, packed, bias, compute=f"fp16_fp16_hopper_{kernel}", activation="gelu")
    Y = run_gemm(model, X, None, options, CUDA).astype(np.float64)
    expected = reference(X, packed, bias, activation="gelu")
    rounding = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64) / 2
    assert (np.abs(Y - expected) <= 2e-4 + rounding).all()
    assert (Y[Z < -6] == 0).all()


@pytest.mark.parametrize("block", [8, 16, 32, 64, 256])
@pytest.mark.parametrize(
    "kernel", ["128x256", "128x256_rows", "128x256_columns", "128x128_turns_columns", "128x64_split2", "64x64_split2"]
)
def test_kept_blocks(options, kernel, block):
    for features, M in ((2048, 300), (1000, 70), (2056, 131)):
        blocks = -(-features // block)
        kept = np.sort(np.random.default_rng(block).permutation(blocks)[: max(1, blocks // 2)])
        index = np.concatenate([np.arange(b * block, min(b * block + block, features)) for b in kept])
        if index.size <= 64 and "split" in kernel:
            continue
        run(options, kernel, (M, index.size, 528), "bf16", features, index, block=block, kept=kept.tolist())


@pytest.mark.parametrize("prefix", OPERANDS)
def test_not_a_number_passes(options, prefix):
    dtype, name = OPERANDS[prefix]
    X, packed, bias = case((130, 128, 136), name, dtype)
    X[5, 7] = np.nan
    for kernel in ("128x192_turns", "128x128_turns", "64x64_split2"):
        for activation in ("relu", "clip", "gelu"):
            epilogue = {"activation": activation, "alpha": -0.2, "beta": 0.5}
            model = gemm_model(X, packed, bias, compute=f"{prefix}_{prefix}_hopper_{kernel}", **epilogue)
            Y = run_gemm(model, X, None, options, CUDA)
            assert np.isnan(Y[5]).all()
            assert not np.isnan(np.delete(Y, 5, axis=0)).any()


@pytest.mark.parametrize(
    "kernel",
    [
        "128x192_turns_columns",
        "192x128",
        "208x128_transposed",
        "128x128_turns_columns",
        "128x64_split2",
        "64x128_split2",
        "64x64_split4",
    ],
)
def test_repeated_runs_are_equal(options, kernel):
    X, packed, bias = case((500, 2048, 1000), "half", np.float16)
    model = gemm_model(X, packed, bias, compute=f"fp16_fp16_hopper_{kernel}", activation="silu")
    check_repeats(options, model, X, 300)
