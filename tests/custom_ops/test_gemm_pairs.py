"""Every pair of operands, output type, epilogue, elimination and shape, in CPU sessions with the library."""

import pytest
from covering import pairwise
from gemm_cases import FACTORS, failure, is_allowed, make_case, run_cases

CHUNK = 33
OPERANDS = [operands for operands in FACTORS["operands"] if operands[2] == "auto"]
ROWS = pairwise({**FACTORS, "operands": OPERANDS}, is_allowed)


@pytest.mark.parametrize("first", range(0, len(ROWS), CHUNK))
def test_pairs(options, first):
    cases = [make_case(row, seed) for seed, row in enumerate(ROWS[first : first + CHUNK], first)]
    outputs = run_cases(cases, options, "CPUExecutionProvider")
    assert not [f for case, Y in zip(cases, outputs, strict=True) if (f := failure(case, Y))]
