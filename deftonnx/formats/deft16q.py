"""deft16q: two values in one 32-bit word, unpacked without masking (paper section 4.2.2, figure 7e).

The word of input features 2j and 2j+1 is ``hi << 16 | lo``: feature 2j is ``word << 16``, feature 2j+1 the
whole word read as a float32, so that lo spills into its low mantissa bits. `lo` is the first feature rounded
to bfloat16. `hi` is chosen, knowing the spill, so that the whole word is nearest to the second feature; the
spill then costs no accuracy against deft16. Made for float32 arithmetic: a tensor core would read the halves
apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deftonnx.formats.deft16 import round_to_bfloat16
from deftonnx.formats.packed import NO_NUMBERS, FormatError, PackedWeight, checked, to_rows, unpack_rows

_LARGEST_FINITE = 0x7F7F
_HIDDEN = np.float32(2**23)


def _spill_aware_upper(values: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return the upper halves whose words, ended by `lower`, are nearest to `values` (ties: the smaller).

    Within one sign the value grows with the word, so the nearest word ends in one of three neighbouring
    upper halves: the one of `values` itself, or one below or above it.
    """
    bits = values.view(np.uint32)
    sign = (bits >> 16) & 0x8000
    magnitude = ((bits >> 16) & 0x7FFF).astype(np.int64)
    target = np.abs(values.astype(np.float64))
    best = np.zeros_like(magnitude)
    best_error = np.full(values.shape, np.inf)
    for step in (-1, 0, 1):
        upper = np.clip(magnitude + step, 0, _LARGEST_FINITE)
        word = (upper.astype(np.uint32) << 16) | lower
        error = np.abs(word.view(np.float32).astype(np.float64) - target)
        best = np.where(error < best_error, upper, best)
        best_error = np.minimum(error, best_error)
    return best.astype(np.uint32) | sign


@dataclass(frozen=True)
class Deft16q:
    """uint32 words of two input features, scale 1."""

    name: str = "deft16q"
    onnx_type: int = TensorProto.UINT32
    numbers: ClassVar[Mapping[str, int]] = NO_NUMBERS

    @classmethod
    def parse(cls, option: str) -> Deft16q:
        """``deft16q``."""
        if option:
            raise FormatError(f"deft16q takes no option, not {option!r}")
        return cls()

    def pack(self, weight: np.ndarray) -> PackedWeight:
        """Pack a finite (K, N) weight into (N, Kp / 2) words; raises FormatError otherwise.

        An odd K leaves the last word's upper half +0 with the spill of its lower half: a value under 2^-126
        that no unpacking returns.
        """
        rows = to_rows(checked(weight))  # (N, Kp)
        lower = round_to_bfloat16(np.ascontiguousarray(rows[:, 0::2])).astype(np.uint32)
        words = (_spill_aware_upper(np.ascontiguousarray(rows[:, 1::2]), lower) << 16) | lower
        return PackedWeight(self.name, words, np.ones(rows.shape[0], np.float32), weight.shape[0])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(N, Kp / 2) words to (N, Kp) values."""
        pair = np.stack([codes << 16, codes], axis=-1)  # (N, Kp / 2, 2)
        return pair.reshape(codes.shape[0], -1).view(np.float32)

    def unpack(self, packed: PackedWeight) -> np.ndarray:
        """Return the (K, N) float32 weight."""
        return unpack_rows(self.decode(packed.codes), packed)

    def decode_nodes(self, opset: int) -> Sequence[onnx.NodeProto]:
        """Build the floats by arithmetic, since standard operators cannot reinterpret bits.

        A finite float32 is unit[sign and exponent] * (mantissa + hidden[exponent]), both factors and the
        product exact. Division and remainder by powers of two split the bits.
        """
        sign_exponent = np.arange(512)
        exponent = np.maximum(sign_exponent & 255, 1)
        unit = np.ldexp(np.where(sign_exponent & 256, -1.0, 1.0), exponent - 150).astype(np.float32)
        unit[exponent == 255] = np.nan  # infinities and NaN, which are never packed
        hidden = np.where(sign_exponent & 255, _HIDDEN, 0).astype(np.float32)
        constants = {
            "two_16": np.uint32(2**16),
            "two_23": np.uint32(2**23),
            "unit": unit,
            "hidden": hidden,
            "last_axis": np.array([2], np.int64),
            "rows": np.array([0, -1], np.int64),
        }
        node = helper.make_node
        return [
            *(node("Constant", [], [k], value=numpy_helper.from_array(np.asarray(v))) for k, v in constants.items()),
            node("Mod", ["W", "two_16"], ["lower"]),
            node("Mul", ["lower", "two_16"], ["first_word"]),
            node("Unsqueeze", ["first_word", "last_axis"], ["first_word_3d"]),
            node("Unsqueeze", ["W", "last_axis"], ["second_word_3d"]),
            node("Concat", ["first_word_3d", "second_word_3d"], ["pairs"], axis=2),
            node("Reshape", ["pairs", "rows"], ["words"]),  # (N, Kp)
            node("Div", ["words", "two_23"], ["sign_exponent"]),
            node("Cast", ["sign_exponent"], ["index"], to=TensorProto.INT64),
            node("Mod", ["words", "two_23"], ["mantissa"]),
            node("Cast", ["mantissa"], ["mantissa_float"], to=TensorProto.FLOAT),
            node("Gather", ["hidden", "index"], ["hidden_bit"]),
            node("Gather", ["unit", "index"], ["unit_value"]),
            node("Add", ["mantissa_float", "hidden_bit"], ["significand"]),
            node("Mul", ["significand", "unit_value"], ["W_values"]),
        ]
