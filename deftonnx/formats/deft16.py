"""deft16: the upper half of a float32 (paper section 4.2.2, figure 7d), that is a bfloat16.

Sign, 8 exponent bits, 7 mantissa bits. Rounded to nearest, ties to even; ``deft16:truncate`` cuts the low
half off as the paper does. Signed zeros and subnormals are kept. A finite value that would round to infinity
becomes the largest finite one, since a packed weight is always finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from deftonnx.formats.packed import NO_NUMBERS, FormatError, PackedWeight, checked, to_rows, unpack_rows

_LARGEST_FINITE = 0x7F7F


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return the uint16 bits of finite float32 `values` rounded to nearest even, saturating."""
    bits = values.view(np.uint32)
    odd = (bits >> 16) & 1
    upper = ((bits + 0x7FFF + odd) >> 16).astype(np.uint16)
    overflowed = (upper & 0x7FFF) > _LARGEST_FINITE
    return np.where(overflowed, (upper & 0x8000) | _LARGEST_FINITE, upper).astype(np.uint16)


@dataclass(frozen=True)
class Deft16:
    """bfloat16 codes (uint16 bits), scale 1."""

    truncate: bool = False
    onnx_type: int = TensorProto.BFLOAT16
    numbers: ClassVar[Mapping[str, int]] = NO_NUMBERS

    @classmethod
    def parse(cls, option: str) -> Deft16:
        """``deft16`` or ``deft16:truncate``."""
        if option not in ("", "truncate"):
            raise FormatError(f"deft16 takes no option but 'truncate', not {option!r}")
        return cls(truncate=bool(option))

    @property
    def name(self) -> str:
        """The name in models: both roundings decode alike."""
        return "deft16"

    def pack(self, weight: np.ndarray) -> PackedWeight:
        """Pack a finite (K, N) weight; raises FormatError otherwise."""
        rows = to_rows(checked(weight))  # (N, Kp)
        codes = (rows.view(np.uint32) >> 16).astype(np.uint16) if self.truncate else round_to_bfloat16(rows)
        return PackedWeight(self.name, codes, np.ones(rows.shape[0], np.float32), weight.shape[0])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """float32 whose upper half is the code; infinities and NaN decode as such, though none is packed."""
        return (codes.astype(np.uint32) << 16).view(np.float32)

    def unpack(self, packed: PackedWeight) -> np.ndarray:
        """Return the (K, N) float32 weight."""
        return unpack_rows(self.decode(packed.codes), packed)

    def decode_nodes(self, opset: int) -> Sequence[onnx.NodeProto]:
        """A Cast: ONNX knows bfloat16."""
        return [helper.make_node("Cast", ["W"], ["W_values"], to=TensorProto.FLOAT)]
