"""fp8: weights in deft8:4, and each row of X rounded to the same values as the layer runs, for FP8 tensor cores.

A row of X (its kept features) gets a scale, the least power of two that brings its largest magnitude to 448 or below,
but at least 2^-100; its values divided by that go to the nearest value of deft8:4, ties to even. A power of two costs
a floating-point format no accuracy, divides exactly, and makes the rounded row exact in bfloat16, so that GPUs without
FP8 tensor cores compute the same. A row that holds infinities or NaN becomes NaN.

deft8:4 and OCP's E4M3 give every code the same value but 0x7F and 0xFF, NaN in E4M3: they are never packed, and the
operator library refuses a weight that holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deftonnx.formats.deft8 import Deft8, decode_table, nearest
from deftonnx.formats.packed import FormatError, PackedWeight

FP8 = "fp8"
_E4M3 = Deft8(4)
WEIGHTS_OF_FP8 = _E4M3.name
_LARGEST = 448.0
_LEAST_POWER = -100
_OPSET_OF_AXES_INPUT = 18


@dataclass(frozen=True)
class Fp8:
    """deft8:4 codes that meet activations of the same values."""

    name: str = FP8
    onnx_type: int = TensorProto.UINT8
    largest_code: int = _E4M3.largest_code

    @classmethod
    def parse(cls, option: str) -> Fp8:
        """``fp8``."""
        if option:
            raise FormatError(f"fp8 has no options such as {option!r}")
        return cls()

    def pack(self, weight: np.ndarray) -> PackedWeight:
        """As deft8:4."""
        return replace(_E4M3.pack(weight), format=self.name)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """As deft8:4."""
        return _E4M3.decode(codes)

    def unpack(self, packed: PackedWeight) -> np.ndarray:
        """As deft8:4."""
        return _E4M3.unpack(packed)

    @property
    def numbers(self) -> Mapping[str, int]:
        """As deft8:4."""
        return _E4M3.numbers

    def decode_nodes(self, opset: int) -> Sequence[onnx.NodeProto]:
        """As deft8:4."""
        return _E4M3.decode_nodes(opset)


def round_rows(X: np.ndarray) -> np.ndarray:
    """The rows of X (..., K) as a layer of format fp8 multiplies them, float32."""
    wide = X.astype(np.float32)
    largest = np.abs(wide).max(axis=-1, keepdims=True, initial=0)  # (..., 1)
    finite = np.isfinite(largest)
    fraction, exponent = np.frexp(np.where(finite, largest, 1))  # 448 is 0.875 * 2^9
    power = np.where(largest > 0, exponent - 9 + (fraction > 0.875), _LEAST_POWER).clip(_LEAST_POWER)
    scale = np.ldexp(np.float32(1), power)
    magnitude = np.where(finite, np.abs(wide) / scale, 0).astype(np.float64)
    values = np.copysign(decode_table(4)[nearest(magnitude, 4)], wide)
    return np.where(finite, values * scale, np.float32(np.nan)).astype(np.float32)


def rounding_nodes(source: str, output: str, opset: int) -> list[onnx.NodeProto]:
    """round_rows in standard operators, from the float32 `source` (..., K) to `output`; all of it is exact."""
    node = helper.make_node
    nodes = [node("Abs", [source], ["magnitude"]), *_largest("magnitude", opset)]
    # the scale: 2^-100, doubled as long as the largest magnitude is over 448 of it; by whole powers at a time
    rest, scale = "largest", "row_scale"
    nodes.append(_constant(scale, 2.0**_LEAST_POWER))
    for i, bits in enumerate((64, 64, 64, 32, 16, 8, 4, 2, 1)):
        limit = _LARGEST * 2.0 ** (_LEAST_POWER + bits - 1)
        nodes += [
            *_choice(f"row_{i}", "Greater", rest, limit, 2.0**bits),
            node("Div", [rest, f"row_{i}"], [f"rest_{i}"]),
            node("Mul", [scale, f"row_{i}"], [f"row_scale_{i}"]),
        ]
        rest, scale = f"rest_{i}", f"row_scale_{i}"
    # the step between values: 2^-9, doubled for every binade above the least, which begins at 2^-6
    rest, step = "rest", "step"
    nodes += [node("Div", ["magnitude", scale], [rest]), _constant(step, 2.0**-9)]
    for bits in (8, 4, 2, 1):
        nodes += [
            *_choice(f"binade_{bits}", "GreaterOrEqual", rest, 2.0 ** (bits - 6), 2.0**bits),
            node("Div", [rest, f"binade_{bits}"], [f"rest_of_{bits}"]),
            node("Mul", [step, f"binade_{bits}"], [f"step_{bits}"]),
        ]
        rest, step = f"rest_of_{bits}", f"step_{bits}"
    return [
        *nodes,
        node("Mul", [step, scale], ["unit"]),
        node("Div", [source, "unit"], ["units"]),
        node("Round", ["units"], ["whole_units"]),
        node("Mul", ["whole_units", "unit"], [output]),
    ]


def _largest(source: str, opset: int) -> list[onnx.NodeProto]:
    """From `source` (..., K) to `largest` (..., 1)."""
    if opset < _OPSET_OF_AXES_INPUT:
        return [helper.make_node("ReduceMax", [source], ["largest"], axes=[-1], keepdims=1)]
    axes = helper.make_node("Constant", [], ["last_axis"], value_ints=np.array([-1], np.int64))
    return [axes, helper.make_node("ReduceMax", [source, "last_axis"], ["largest"], keepdims=1)]


def _choice(output: str, comparison: str, source: str, limit: float, factor: float) -> list[onnx.NodeProto]:
    """`factor` where the comparison of `source` with `limit` holds, else 1."""
    return [
        _constant(f"{output}_limit", limit),
        _constant(f"{output}_factor", factor),
        _constant(f"{output}_one", 1.0),
        helper.make_node(comparison, [source, f"{output}_limit"], [f"{output}_holds"]),
        helper.make_node("Where", [f"{output}_holds", f"{output}_factor", f"{output}_one"], [output]),
    ]


def _constant(output: str, value: float) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value=numpy_helper.from_array(np.array(value, np.float32)))
