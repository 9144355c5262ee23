"""half: IEEE 754 half precision (paper section 4.2.2, figure 7c), a power-of-two scale per output feature.

The paper rejects half because converting it costs several instructions; tensor cores multiply it directly, so
here it is the format to choose beside float16 activations. The scale brings the largest weight of each
output feature to the top of half's range: it is exact, and it makes overflow impossible and underflow
relative to that weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from deftonnx.formats.packed import NO_NUMBERS, FormatError, PackedWeight, checked, to_rows, unpack_rows

_TOP_EXPONENT = 16  # frexp's exponent of [2^15, 2^16)
_ROUNDS_TO_INFINITY = 65520.0
_LARGEST_WEIGHT = np.float32(65504 * 2.0**112)  # beyond it rounding would leave float32's range
_SMALLEST_SCALE_EXPONENT = -126  # a subnormal scale could be flushed to zero by a kernel


@dataclass(frozen=True)
class Half:
    """IEEE half codes (uint16 bits) with a power-of-two scale."""

    name: str = "half"
    onnx_type: int = TensorProto.FLOAT16
    numbers: ClassVar[Mapping[str, int]] = NO_NUMBERS

    @classmethod
    def parse(cls, option: str) -> Half:
        """``half``."""
        if option:
            raise FormatError(f"half takes no option, not {option!r}")
        return cls()

    def pack(self, weight: np.ndarray) -> PackedWeight:
        """Pack a finite (K, N) weight; raises FormatError otherwise."""
        rows = np.clip(to_rows(checked(weight)), -_LARGEST_WEIGHT, _LARGEST_WEIGHT)  # (N, Kp)
        largest = np.abs(rows).max(axis=1, initial=0)
        exponent = np.frexp(largest)[1] - _TOP_EXPONENT
        exponent += np.ldexp(largest.astype(np.float64), -exponent) >= _ROUNDS_TO_INFINITY
        exponent = np.where(largest > 0, exponent, 0)
        exponent = np.maximum(exponent, _SMALLEST_SCALE_EXPONENT)
        # in float64, so that only the rounding to half rounds
        codes = np.ldexp(rows.astype(np.float64), -exponent[:, None]).astype(np.float16)
        scale = np.ldexp(np.float32(1), exponent).astype(np.float32)
        return PackedWeight(self.name, codes.view(np.uint16), scale, weight.shape[0])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """IEEE half to float32, which is exact; infinities and NaN decode as such, though none is packed."""
        return codes.view(np.float16).astype(np.float32)

    def unpack(self, packed: PackedWeight) -> np.ndarray:
        """Return the (K, N) float32 weight."""
        return unpack_rows(self.decode(packed.codes), packed)

    def decode_nodes(self, opset: int) -> Sequence[onnx.NodeProto]:
        """A Cast."""
        return [helper.make_node("Cast", ["W"], ["W_values"], to=TensorProto.FLOAT)]
