"""Weights written anew for float16 X (runtime/float16_weight.h): the values that the new codes and scales stand for."""

import ctypes
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deftonnx.formats import deft8

RUNTIME = Path(__file__).parents[2] / "custom_ops" / "runtime"
ENTRY = """
#include "float16_weight.h"
extern "C" void narrow(uint8_t* codes, float* scale, int64_t N, int64_t row, int exponent_bits) {
  deftonnx::ToDeft8With5(codes, scale, N, row, exponent_bits);
}
extern "C" void halve(uint16_t* codes, float* scale, int64_t N, int64_t row) {
  deftonnx::ToHalf(codes, scale, N, row);
}
"""


@pytest.fixture(scope="module")
def float16_weight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("float16_weight")
    (folder / "entry.cpp").write_text(ENTRY)
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-fPIC", "-shared", f"-I{RUNTIME}"]
    sources = [folder / "entry.cpp", RUNTIME / "float16_weight.cpp"]
    subprocess.run([*command, "-o", folder / "entry.so", *sources], check=True)
    return ctypes.CDLL(str(folder / "entry.so"))


def address(array):
    return ctypes.c_void_p(array.ctypes.data)


def narrowed(float16_weight, codes, scale, exponent_bits):
    codes, scale = codes.copy(), scale.copy()
    float16_weight.narrow(address(codes), address(scale), *map(ctypes.c_int64, codes.shape), exponent_bits)
    return codes, scale


@settings(max_examples=60, deadline=None)
@given(
    exponent_bits=st.sampled_from([6, 7]),
    seed=st.integers(0, 2**32 - 1),
    least=st.integers(0, 127),
    exponent=st.integers(-126, 50),
)
def test_deft8_of_many_exponents(float16_weight, exponent_bits, seed, least, exponent):
    rng = np.random.default_rng(seed)
    codes = (rng.integers(least, 128, (4, 32)) | rng.integers(0, 2, (4, 32)) * 128).astype(np.uint8)  # (N, K)
    codes[0] &= 0x80  # zeros of both signs
    scale = np.ldexp(rng.uniform(1, 2, 4), exponent).astype(np.float32)
    before = deft8.decode_table(exponent_bits)[codes].astype(np.float64) * scale[:, None]
    new_codes, new_scale = narrowed(float16_weight, codes, scale, exponent_bits)
    assert (new_codes & 0x7F).max() <= 0x7B  # above are half's infinities
    assert new_scale.min() >= np.finfo(np.float32).tiny
    after = deft8.decode_table(5)[new_codes].astype(np.float64) * new_scale[:, None]
    np.testing.assert_array_equal(np.signbit(after), np.signbit(before))
    largest = np.abs(before).max(axis=1, keepdims=True)
    least_scale = np.ldexp(1.0, -126 + 16)  # so that what is lost below is lost to the scale's own range
    error = np.abs(after - before)
    assert (error <= np.maximum(np.ldexp(largest, -32), np.ldexp(least_scale, -32))).all()
    assert (error[(np.abs(before) >= np.ldexp(largest, -30)) & (largest > least_scale)] == 0).all()


def test_rows_without_a_scale_keep_their_codes_finite(float16_weight):
    codes, scale = narrowed(float16_weight, np.full((1, 16), 0x7F, np.uint8), np.zeros(1, np.float32), 7)
    assert (codes == codes[0, 0]).all()
    assert codes[0, 0] <= 0x7B
    assert scale[0] == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), low=st.integers(-126, 100))
def test_deft16_of_many_exponents(float16_weight, seed, low):
    rng = np.random.default_rng(seed)
    values = np.ldexp(rng.uniform(-1, 1, (3, 32)), rng.integers(low, min(low + 60, 127), (3, 32))).astype(np.float32)
    codes = (values.view(np.uint32) >> 16).astype(np.uint16)
    before = (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    scale = np.ones(3, np.float32)
    float16_weight.halve(address(codes), address(scale), ctypes.c_int64(3), ctypes.c_int64(32))
    after = codes.view(np.float16).astype(np.float64) * scale[:, None]
    largest = np.abs(before).max(axis=1, keepdims=True)
    error = np.abs(after - before)
    assert (error <= np.maximum(np.ldexp(largest, -40), 2.0**-150)).all()
    assert (error[np.abs(before) >= np.maximum(np.ldexp(largest, -32), 2.0**-118)] == 0).all()
