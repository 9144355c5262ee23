"""What every packed format shares: the weight layout, the record of a packed weight, the interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import onnx

from deftonnx.errors import UsageError

LAYOUT_VERSION = 1
NO_NUMBERS: Mapping[str, int] = MappingProxyType({})
ROW_ALIGNMENT = 16  # input features: every row starts on a 16-byte boundary, whatever the code size


class FormatError(UsageError):
    """A weight or a format name that cannot be packed; the message says which and why."""


@dataclass(frozen=True)
class PackedWeight:
    """A weight packed offline, in layout version 1.

    codes: (N, Kp) codes, or (N, Kp / 2) words of two; output feature n is row n, so that a kernel reads one
        output's weights in consecutive bytes. Kp is K rounded up to a multiple of 16; the rest decodes to +0
        (deft16q: or to a spill under 2^-126).
    scale: (N,) float32; the weight is value(code) * scale.
    """

    format: str
    codes: np.ndarray
    scale: np.ndarray
    K: int

    @property
    def N(self) -> int:
        """Number of output features."""
        return int(self.codes.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales together."""
        return int(self.codes.nbytes + self.scale.nbytes)


class Format(Protocol):
    """One packed format."""

    @property
    def name(self) -> str:
        """What models call it."""

    @property
    def onnx_type(self) -> int:
        """TensorProto element type of the codes."""

    @property
    def numbers(self) -> Mapping[str, int]:
        """What formats with the same `decode_nodes` differ in: int64 scalars which those find under these names."""

    def pack(self, weight: np.ndarray) -> PackedWeight:
        """Pack a finite (K, N) weight; raises FormatError otherwise."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return float32 value(code) of the codes (N, Kp), bit-exact, every code included."""

    def unpack(self, packed: PackedWeight) -> np.ndarray:
        """Return the (K, N) float32 weight."""

    def decode_nodes(self, opset: int) -> Sequence[onnx.NodeProto]:
        """Return standard operators from codes `W` to their float32 (N, Kp) values `W_values`."""


def checked(weight: np.ndarray) -> np.ndarray:
    """Return `weight` as float32 (K, N), or raise FormatError if it is not a finite matrix."""
    weight = np.asarray(weight)
    if weight.ndim != 2:
        raise FormatError(f"a packed weight is a (K, N) matrix, not an array of shape {weight.shape}")
    with np.errstate(over="ignore"):
        weight = weight.astype(np.float32)
    if not np.isfinite(weight).all():
        raise FormatError("the weight holds infinities or NaN, which no packed format keeps")
    return weight


def to_rows(weight: np.ndarray) -> np.ndarray:
    """Transpose (K, N) to (N, Kp), the tail of each row filled with zeros."""
    K, N = weight.shape
    rows = np.zeros((N, padded(K)), weight.dtype)
    rows[:, :K] = weight.T
    return rows


def padded(K: int) -> int:
    """K rounded up to whole 16-feature groups."""
    return -(-K // ROW_ALIGNMENT) * ROW_ALIGNMENT


def unpack_rows(values: np.ndarray, packed: PackedWeight) -> np.ndarray:
    """Scale decoded (N, Kp) values and return the (K, N) weight."""
    scaled = values[:, : packed.K] * packed.scale[:, None]  # (N, K) float32
    return np.ascontiguousarray(scaled.T)
