"""DeftGemm on the GPU against float64 arithmetic on the same unpacked operands: all pairs, and many shapes."""

import itertools

import numpy as np
import pytest
from gemm_cases import Case, covering_rows, failure, make_case, run_cases
from gemm_model import DTYPES

from deftonnx.formats import GEMM_FORMAT_NAMES, pack_weight

CHUNK = 16
ROWS = covering_rows()
SHAPES = [
    *((m, k, n) for m in (1, 5, 16, 64, 200) for k, n in ((16, 16), (64, 48), (208, 272), (1024, 512))),
    (0, 16, 16), (0, 7, 3), (1, 1, 1), (2, 1, 33), (33, 17, 1), (7, 31, 129), (129, 65, 63), (3, 1000, 10),
    (257, 127, 255), (65, 8, 200), (1, 4097, 31), (300, 2, 2), (2, 20000, 40), (1000, 48, 16),
]  # fmt: skip


def check(cases, options):
    outputs = run_cases(cases, options, "CUDAExecutionProvider")
    failures = [failure(case, Y) for case, Y in zip(cases, outputs, strict=True)]
    assert not [f for f in failures if f]


@pytest.mark.parametrize("first", range(0, len(ROWS), CHUNK))
def test_pairs(options, first):
    check([make_case(row, seed) for seed, row in enumerate(ROWS[first : first + CHUNK], first)], options)


def plain_case(shape, name, dtype, output, path="auto"):
    M, K, N = shape
    rng = np.random.default_rng(M * 7919 + K * 31 + N)
    row = {"output": output, "activation": "none", "block": 0}
    weight = (rng.standard_normal((K, N)) * K**-0.5).astype(np.float32)
    bias = rng.standard_normal(N).astype(np.float32)
    X = rng.standard_normal((M, K)).astype(dtype)
    return Case(row, path, X, None, np.arange(K), pack_weight(weight, name), bias, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", ["fp32", *GEMM_FORMAT_NAMES])
def test_shapes(options, name, dtype):
    outputs = itertools.cycle((dtype, np.float32))
    check([plain_case(shape, name, dtype, next(outputs)) for shape in SHAPES], options)
