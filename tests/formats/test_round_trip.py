"""Properties of pack and unpack: exact on representable weights, nearest on all others, finite always."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deftonnx.formats import GEMM_FORMAT_NAMES, FormatError, PackedWeight, get_format, pack_weight, unpack_weight
from deftonnx.formats.deft8 import Deft8, choose_exponent_bits, decode_table
from deftonnx.formats.packed import padded

SHAPES = [(1, 1), (1, 7), (7, 1), (15, 3), (16, 16), (17, 5), (33, 2)]
EXPONENT_BITS = range(1, 8)

finite_weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def bits(array):
    return np.ascontiguousarray(array).view(np.uint32)


def all_codes(name):
    """A packed weight (K, 1) of every code that the format packs; of fp32, of a sample."""
    if name == "fp32":
        sample = np.random.default_rng(0).integers(0, 2**23, 2**16, dtype=np.uint32)
        codes = np.arange(2**16, dtype=np.uint32) << 16 | sample & 0xFFFF  # every sign and exponent
        codes = codes[np.isfinite(codes.view(np.float32))]
    elif name == "half":
        codes = np.arange(2**16, dtype=np.uint16)
        codes = codes[np.isfinite(codes.view(np.float16))]
    elif name == "deft16":
        codes = np.arange(2**16, dtype=np.uint16)
        codes = codes[np.isfinite(codes.view(ml_dtypes.bfloat16).astype(np.float32))]
    elif name == "deft16q":
        upper = np.arange(2**16, dtype=np.uint32)
        upper = upper[(upper & 0x7F80) != 0x7F80]
        codes = upper << 16 | np.roll(upper, 12345)
    else:
        largest = get_format(name).largest_code
        codes = np.arange(256, dtype=np.uint8)
        codes = codes[(codes & 0x7F) <= largest]
    codes = np.resize(codes, -(-codes.size // 16) * 16)[None]
    K = codes.size * (2 if name == "deft16q" else 1)
    return PackedWeight(name, codes, np.ones(1, np.float32), K)


@pytest.mark.parametrize("name", ["fp32", *GEMM_FORMAT_NAMES])
def test_every_code_is_a_fixed_point(name):
    packed = all_codes(name)
    weight = unpack_weight(packed)
    again = pack_weight(weight, name)
    assert np.isfinite(weight).all()
    assert np.array_equal(bits(unpack_weight(again)), bits(weight))


@pytest.mark.parametrize("name", ["fp32", *GEMM_FORMAT_NAMES])
@pytest.mark.parametrize(("K", "N"), SHAPES)
def test_layout(name, K, N):
    weight = np.random.default_rng(K * 100 + N).standard_normal((K, N)).astype(np.float32)
    packed = pack_weight(weight, name)
    per_word = 2 if name == "deft16q" else 1
    assert packed.codes.shape == (N, padded(K) // per_word)
    assert (packed.K, packed.N, packed.scale.shape) == (K, N, (N,))
    assert unpack_weight(packed).shape == (K, N)


@pytest.mark.parametrize("name", ["fp32", *GEMM_FORMAT_NAMES])
def test_the_largest_numbers_stay_finite(name):
    largest = np.finfo(np.float32).max
    weight = np.float32([[largest, np.nextafter(largest, np.float32(0)), 2.9e38, 1e-45]])
    with np.errstate(over="raise"):
        assert np.isfinite(unpack_weight(pack_weight(weight, name))).all()


@pytest.mark.parametrize("name", ["fp32", *GEMM_FORMAT_NAMES])
def test_padding_contributes_nothing(name):
    packed = pack_weight(np.full((17, 3), -1.5, np.float32), name)
    tail = get_format(name).decode(packed.codes)[:, 17:]
    assert np.abs(tail).max() < 2.0**-126


@pytest.mark.parametrize("name", ["fp32", *GEMM_FORMAT_NAMES])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_infinities_and_nan_are_refused(name, bad):
    weight = np.ones((3, 2), np.float32)
    weight[1, 1] = bad
    with pytest.raises(FormatError, match="infinities or NaN"):
        pack_weight(weight, name)


@pytest.mark.parametrize(
    "name", ["deft9", "deft8", "deft8:0", "deft8:8", "deft8:x", "half:2", "deft16:up", "deft16q:a"]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(FormatError):
        get_format(name)


def test_only_matrices_are_packed():
    with pytest.raises(FormatError, match=r"\(2, 2, 2\)"):
        pack_weight(np.ones((2, 2, 2), np.float32), "deft16")


@given(finite_weights)
def test_deft16_is_bfloat16_rounded_to_nearest_even(weight):
    largest = np.float32(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    expected = weight.astype(ml_dtypes.bfloat16).astype(np.float32)
    expected = np.clip(expected, -largest, largest)
    assert np.array_equal(bits(unpack_weight(pack_weight(weight, "deft16"))), bits(expected))


@given(finite_weights)
def test_deft16_truncate_cuts_the_lower_half(weight):
    assert np.array_equal(bits(unpack_weight(pack_weight(weight, "deft16:truncate"))), bits(weight) & 0xFFFF0000)


@given(finite_weights)
def test_deft16q_words_are_nearest(weight):
    packed = pack_weight(weight, "deft16q")
    unpacked = unpack_weight(packed)
    assert np.array_equal(bits(unpacked[0::2]), bits(unpack_weight(pack_weight(weight, "deft16"))[0::2]))
    second = unpacked[1::2].astype(np.float64)
    error = np.abs(second - weight[1::2])
    lower = packed.codes & 0xFFFF
    for step in (-0x10000, 0x10000):
        # the neighbouring words, where they are finite and of the same sign
        word = packed.codes.astype(np.int64) + step
        same_sign = (word >= 0) & (word < 2**32) & (((word ^ packed.codes) >> 31) == 0)
        word = np.where(same_sign, word, packed.codes).astype(np.uint32)
        word = np.where((word >> 16 & 0x7F80) == 0x7F80, packed.codes, word)
        assert np.array_equal(word & 0xFFFF, lower)
        neighbour = word.view(np.float32).T[: second.shape[0]].astype(np.float64)
        assert (error <= np.abs(neighbour - weight[1::2])).all()


@given(finite_weights, st.sampled_from(EXPONENT_BITS))
def test_deft8_codes_are_nearest(weight, exponent_bits):
    packing = Deft8(exponent_bits)
    packed = packing.pack(weight)
    values = decode_table(exponent_bits)[: packing.largest_code + 1].astype(np.float64)
    scaled = np.abs(weight.T) / packed.scale[:, None].astype(np.float64)  # (N, K)
    best = np.abs(scaled[:, :, None] - values).min(axis=2)
    chosen = np.abs(packing.decode(packed.codes)[:, : packed.K]).astype(np.float64)
    assert np.array_equal(np.abs(scaled - chosen), best)
    assert np.array_equal(np.signbit(packing.decode(packed.codes))[:, : packed.K], np.signbit(weight.T))
    assert (packed.codes & 0x7F).max(initial=0) <= packing.largest_code


@given(finite_weights)
def test_half_errs_by_at_most_half_a_unit(weight):
    packed = pack_weight(weight, "half")
    error = np.abs(unpack_weight(packed).astype(np.float64) - weight)
    largest = np.abs(weight).max(axis=0)
    unit = np.maximum(np.abs(weight) * 2.0**-11, largest * 2.0**-38)
    assert (error <= np.maximum(unit, 2.0**-150)).all()
    assert (np.frexp(packed.scale)[0] == 0.5).all()


@pytest.mark.parametrize("exponent_bits", EXPONENT_BITS)
def test_deft8_table_follows_the_definition(exponent_bits):
    mantissa_bits, bias = 7 - exponent_bits, 2 ** (exponent_bits - 1) - 1
    table = decode_table(exponent_bits)
    for code in range(256):
        exponent = (code & 0x7F) >> mantissa_bits
        fraction = (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
        value = (1 + fraction) * 2.0 ** (exponent - bias) if exponent else fraction * 2.0 ** (1 - bias)
        assert table[code] == (-value if code & 0x80 else value)
        assert np.signbit(table[code]) == bool(code & 0x80)


@pytest.mark.parametrize(("exponent_bits", "dtype"), [(4, ml_dtypes.float8_e4m3fn), (5, ml_dtypes.float8_e5m2)])
def test_deft8_agrees_with_ocp_fp8(exponent_bits, dtype):
    codes = np.arange(256, dtype=np.uint8)
    hardware = codes.view(dtype).astype(np.float32)
    packable = (codes & 0x7F) <= Deft8(exponent_bits).largest_code
    assert np.array_equal(bits(hardware[packable]), bits(decode_table(exponent_bits)[packable]))
    assert not np.isfinite(hardware[~packable]).any()


def test_auto_follows_the_weight():
    rng = np.random.default_rng(0)
    uniform = rng.uniform(-1, 1, (64, 8)).astype(np.float32)
    spread = (np.sign(uniform) * np.exp2(-60 * np.abs(uniform))).astype(np.float32)
    assert choose_exponent_bits(uniform) <= 2
    assert pack_weight(uniform, "deft8:auto").format == f"deft8:{choose_exponent_bits(uniform)}"
    # the large weights' features are never active: only the tiny ones count, and they need range
    active = np.abs(spread) < 1e-9
    gram = np.diag(active.all(axis=1) | (np.abs(uniform).min(axis=1) > 0.5)).astype(np.float64)
    assert choose_exponent_bits(spread, gram) >= choose_exponent_bits(uniform)


def test_auto_minimises_the_output_error():
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((24, 6)).astype(np.float32)
    X = rng.standard_normal((200, 24)) * rng.lognormal(0, 2, 24)
    errors = [np.linalg.norm(X @ (weight - unpack_weight(pack_weight(weight, f"deft8:{e}")))) for e in EXPONENT_BITS]
    assert choose_exponent_bits(weight, X.T @ X) == 1 + int(np.argmin(errors))
    with pytest.raises(FormatError, match="Gram"):
        choose_exponent_bits(weight, np.eye(3))


@settings(max_examples=30)
@given(finite_weights, st.sampled_from(["fp32", *GEMM_FORMAT_NAMES]))
def test_packing_again_changes_nothing(weight, name):
    packed = pack_weight(weight, name)
    again = pack_weight(unpack_weight(packed), name)
    if name.startswith("deft8"):  # the scale may round differently once the largest weight has been rounded
        assert np.allclose(unpack_weight(again), unpack_weight(packed), rtol=1e-6)
    else:
        assert np.array_equal(bits(unpack_weight(again)), bits(unpack_weight(packed)))
