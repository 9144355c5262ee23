"""Packed weight formats (paper section 4.2.2): one module per format, and the table that finds them by name.

A weight W of K input and N output features is packed offline into codes and one float32 scale per output
feature, and decoded as ``value(code) * scale``. Every format has bit-exact NumPy pack and unpack functions
and the standard ONNX operators that decode it, so a packed model runs wherever ONNX runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from deftonnx.formats.deft8 import Deft8, choose_exponent_bits
from deftonnx.formats.deft16 import Deft16
from deftonnx.formats.deft16q import Deft16q
from deftonnx.formats.fp8 import FP8, WEIGHTS_OF_FP8, Fp8, round_rows
from deftonnx.formats.fp32 import Fp32
from deftonnx.formats.half import Half
from deftonnx.formats.packed import Format, FormatError, PackedWeight

__all__ = [
    "FORMAT_NAMES",
    "GEMM_FORMAT_NAMES",
    "Format",
    "FormatError",
    "PackedWeight",
    "get_format",
    "multiplied",
    "pack_weight",
    "unpack_weight",
    "weight_format",
]

_FAMILIES: Mapping[str, Callable[[str], Format]] = MappingProxyType(
    {
        "fp32": Fp32.parse,
        "half": Half.parse,
        "deft16": Deft16.parse,
        "deft16q": Deft16q.parse,
        "deft8": Deft8.parse,
        FP8: Fp8.parse,
    }
)

FORMAT_NAMES: tuple[str, ...] = ("half", "deft16", "deft16q", *(f"deft8:{e}" for e in range(1, 8)))
"""Those of weights that make a model smaller; get_format also knows fp32."""

GEMM_FORMAT_NAMES: tuple[str, ...] = (*FORMAT_NAMES, FP8)
"""Those that DeftGemm has: with fp8, activations are rounded too."""


def get_format(name: str) -> Format:
    """Return the format called `name`, e.g. ``deft16``, ``deft16:truncate`` or ``deft8:4``.

    Raises FormatError for a name that is none, and for ``deft8:auto``, which needs a weight to decide
    (see pack_weight).
    """
    family, _, option = name.partition(":")
    if family not in _FAMILIES:
        raise FormatError(f"unknown format {name!r}; known: {', '.join(GEMM_FORMAT_NAMES)}, deft8:auto")
    return _FAMILIES[family](option)


def pack_weight(weight: np.ndarray, name: str, gram: np.ndarray | None = None) -> PackedWeight:
    """Pack a (K, N) weight in the format called `name`.

    ``deft8:auto`` picks the exponent bits with the least output error: `gram` is the (K, K) Gram matrix of
    the layer's calibration inputs, or None to weigh all input features alike.
    Raises FormatError for an unknown name, a weight that is not a matrix, and infinities or NaN.
    """
    if name == "deft8:auto":
        return Deft8(choose_exponent_bits(weight, gram)).pack(weight)
    return get_format(name).pack(weight)


def unpack_weight(packed: PackedWeight) -> np.ndarray:
    """Return the (K, N) float32 weight that `packed` stands for."""
    return get_format(packed.format).unpack(packed)


def multiplied(X: np.ndarray, name: str) -> np.ndarray:
    """What a layer of the format called `name` multiplies where X (..., K) comes in: X itself but for fp8."""
    return round_rows(X) if name == FP8 else X


def weight_format(name: str) -> str:
    """The format of the weights alone in layers of the format called `name`."""
    return WEIGHTS_OF_FP8 if name == FP8 else name
