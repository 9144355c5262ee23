"""kernels/gather_kept.cu: short kept blocks written side by side, then multiplied as a dense matrix."""

import ml_dtypes
import numpy as np
import pytest
from gemm_model import gemm_model, reference, run_gemm
from test_gemm import CUDA, case, check

OPERANDS = [(np.float16, "half"), (ml_dtypes.bfloat16, "deft16"), (np.float32, "fp32"), (np.float16, "deft8:4")]
# M, features, N: odd ones take words of 2 bytes; long rows more than one block of threads
SHAPES = [(1, 64, 8), (33, 1000, 24), (257, 71, 40), (70, 4104, 16)]


def run(options, dtype, name, shape, block, **attributes):
    M, features, N = shape
    blocks = -(-features // block)
    kept = np.sort(np.random.default_rng(block).permutation(blocks)[: max(1, blocks // 2)])
    index = np.concatenate([np.arange(b * block, min(b * block + block, features)) for b in kept])
    X, packed, bias = case((M, index.size, N), name, dtype, features)
    model = gemm_model(X, packed, bias, features=features, block=block, kept=kept.tolist(), **attributes)
    check(run_gemm(model, X, None, options, CUDA), reference(X[:, index], packed, bias), dtype)


@pytest.mark.parametrize("block", [1, 2, 4, 8, 32])
@pytest.mark.parametrize(("dtype", "name"), OPERANDS)
def test_every_type_and_block(options, dtype, name, block):
    for shape in SHAPES:
        run(options, dtype, name, shape, block, compute="simt_gathered")


@pytest.mark.parametrize("block", [1, 8, 16])
def test_the_dense_kernels_behind_it(options, block):
    for kernel in ("fp16_fp16_hopper_128x128_turns_gathered", "fp16_fp16_hopper_64x64_split2_gathered"):
        run(options, np.float16, "half", (300, 2056, 264), block, compute=kernel)
        run(options, np.float16, "half", (130, 8192, 512), block, compute=kernel)
