"""fp32: float32 as it is, in the layout of packed weights (paper section 4.2.2, figure 7a: no fission).

What the other formats are compared with, and a way to the fused epilogue and the elimination inside the
kernel for weights that must stay exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from deftonnx.formats.packed import NO_NUMBERS, FormatError, PackedWeight, checked, to_rows, unpack_rows


@dataclass(frozen=True)
class Fp32:
    """float32 codes (uint32 bits), scale 1."""

    name: str = "fp32"
    onnx_type: int = TensorProto.FLOAT
    numbers: ClassVar[Mapping[str, int]] = NO_NUMBERS

    @classmethod
    def parse(cls, option: str) -> Fp32:
        """``fp32``."""
        if option:
            raise FormatError(f"fp32 takes no option, not {option!r}")
        return cls()

    def pack(self, weight: np.ndarray) -> PackedWeight:
        """Pack a finite (K, N) weight; raises FormatError otherwise."""
        codes = to_rows(checked(weight)).view(np.uint32)  # (N, Kp)
        return PackedWeight(self.name, codes, np.ones(codes.shape[0], np.float32), weight.shape[0])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The same bits; infinities and NaN stay such, though none is packed."""
        return codes.view(np.float32)

    def unpack(self, packed: PackedWeight) -> np.ndarray:
        """Return the (K, N) float32 weight."""
        return unpack_rows(self.decode(packed.codes), packed)

    def decode_nodes(self, opset: int) -> Sequence[onnx.NodeProto]:
        """A Cast that does nothing, so that 16-bit formats share the body."""
        return [helper.make_node("Cast", ["W"], ["W_values"], to=TensorProto.FLOAT)]
