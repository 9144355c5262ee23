"""deft8:E: 8-bit floating point with E exponent bits, 1 to 7 (paper section 4.2.3, figure 8).

Sign, E exponent bits, 7 - E mantissa bits, bias 2^(E-1) - 1, subnormals kept, no infinities or NaN; one
float32 scale per output feature. For E = 4 and E = 5 the codes that OCP FP8 (E4M3, E5M2) reads as infinity or
NaN are never packed, so that hardware conversion and FP8 tensor cores agree with the table here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deftonnx.formats.packed import FormatError, PackedWeight, checked, to_rows, unpack_rows

EXPONENT_BITS = range(1, 8)
_LARGEST_CODE = {4: 0x7E, 5: 0x7B}  # 448 in E4M3, 57344 in E5M2; 0x7F for every other E
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # a subnormal scale could be flushed to zero by a kernel


def decode_table(exponent_bits: int) -> np.ndarray:
    """Return the float32 value of each of the 256 codes."""
    code = np.arange(128)
    mantissa_bits = 7 - exponent_bits
    exponent = code >> mantissa_bits
    mantissa = code & ((1 << mantissa_bits) - 1)
    significand = np.where(exponent > 0, mantissa + (1 << mantissa_bits), mantissa)
    bias = (1 << (exponent_bits - 1)) - 1
    positive = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    return np.concatenate([positive, -positive]).astype(np.float32)


def choose_exponent_bits(weight: np.ndarray, gram: np.ndarray | None = None) -> int:
    """Return the E with the least output error, the smaller E on a tie.

    The error of a (K, N) weight W packed as Q is trace((W - Q)ᵀ G (W - Q)), the squared error of X·W summed
    over samples, with G the (K, K) Gram matrix XᵀX of calibration inputs; without `gram` G is the identity.
    Raises FormatError if `gram` has another shape.
    """
    weight = checked(weight)
    if gram is not None:
        if gram.shape != (weight.shape[0],) * 2:
            raise FormatError(f"the Gram matrix of {weight.shape[0]} input features cannot be {gram.shape}")
        gram = (gram / (np.abs(gram).max(initial=0) or 1.0)).astype(np.float32)

    def output_error(exponent_bits: int) -> float:
        packing = Deft8(exponent_bits)
        error = weight - packing.unpack(packing.pack(weight))  # (K, N)
        return float(np.sum(error * (error if gram is None else gram @ error), dtype=np.float64))

    return min(EXPONENT_BITS, key=output_error)


@dataclass(frozen=True)
class Deft8:
    """uint8 codes with a float32 scale per output feature."""

    exponent_bits: int
    onnx_type: int = TensorProto.UINT8

    def __post_init__(self) -> None:
        if self.exponent_bits not in EXPONENT_BITS:
            raise FormatError(f"deft8 has 1 to 7 exponent bits, not {self.exponent_bits}")

    @classmethod
    def parse(cls, option: str) -> Deft8:
        """``deft8:1`` … ``deft8:7``."""
        if not option.isdecimal():
            raise FormatError(f"deft8 is followed by its exponent bits, as in deft8:4, not by {option!r}")
        return cls(int(option))

    @property
    def name(self) -> str:
        """``deft8:E``."""
        return f"deft8:{self.exponent_bits}"

    @property
    def largest_code(self) -> int:
        """The greatest positive code that is packed."""
        return _LARGEST_CODE.get(self.exponent_bits, 0x7F)

    def pack(self, weight: np.ndarray) -> PackedWeight:
        """Pack a finite (K, N) weight; raises FormatError otherwise.

        The scale maps each output feature's largest weight to the largest code; the rest go to the nearest
        code, ties to the even one. An all-zero output feature has scale 1. Signed zeros are kept.
        """
        rows = to_rows(checked(weight))  # (N, Kp)
        top = float(decode_table(self.exponent_bits)[self.largest_code])
        largest = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
        scale = np.maximum(largest / top, _SMALLEST_SCALE).astype(np.float32)
        scale = np.where(scale.astype(np.float64) * top > _LARGEST_FLOAT, np.nextafter(scale, np.float32(0)), scale)
        scale[largest == 0] = 1
        magnitude = np.abs(rows) / scale[:, None].astype(np.float64)
        unsigned = np.minimum(nearest(magnitude, self.exponent_bits), self.largest_code).astype(np.uint8)
        codes = unsigned | (np.signbit(rows).astype(np.uint8) << 7)
        return PackedWeight(self.name, codes, scale, weight.shape[0])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Look the codes up; E4M3's and E5M2's infinities and NaN are finite here."""
        return decode_table(self.exponent_bits)[codes]

    def unpack(self, packed: PackedWeight) -> np.ndarray:
        """Return the (K, N) float32 weight."""
        return unpack_rows(self.decode(packed.codes), packed)

    @property
    def numbers(self) -> Mapping[str, int]:
        """The number of exponent bits."""
        return {"exponent_bits": self.exponent_bits}

    def decode_nodes(self, opset: int) -> Sequence[onnx.NodeProto]:
        """A Gather from the 256-entry table of that number of exponent bits."""
        tables = np.stack([decode_table(bits) for bits in (EXPONENT_BITS[0], *EXPONENT_BITS)])  # (8, 256), from E = 0
        return [
            helper.make_node("Constant", [], ["tables"], value=numpy_helper.from_array(tables)),
            helper.make_node("Gather", ["tables", "exponent_bits"], ["table"]),
            helper.make_node("Cast", ["W"], ["index"], to=TensorProto.INT32),
            helper.make_node("Gather", ["table", "index"], ["W_values"]),
        ]


def nearest(magnitude: np.ndarray, exponent_bits: int) -> np.ndarray:
    """Return for each float64 magnitude the number of the nearest value, as if E had no largest one, ties to even.

    In every binade the codes are equally spaced, so the code is the magnitude in units of that spacing, plus the codes
    of the binades below; rounding up out of a binade gives the first code of the next.
    """
    mantissa_bits = 7 - exponent_bits
    bias = (1 << (exponent_bits - 1)) - 1
    exponent = np.where(magnitude > 0, np.frexp(magnitude)[1] - 1, -bias)
    binade = np.maximum(exponent + bias, 1)  # the exponent field; subnormals share the first's
    steps = np.ldexp(magnitude, mantissa_bits + bias - binade)
    codes = np.rint(steps).astype(np.int64) + ((binade - 1) << mantissa_bits)
    if mantissa_bits == 0:  # then a binade is one code, and the even neighbour of a tie may be the lower one
        codes -= (steps == 1.5) & (codes % 2 == 1)
    return codes
