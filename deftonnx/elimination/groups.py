"""Granularities: what is eliminated as a unit (design vocabulary: element, vector, block:B, channel; and head:D)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from deftonnx.errors import UsageError

Array = np.ndarray[Any, Any]
VECTOR = 8
DEFAULT_BLOCK = 32
BLOCKS = (16, 32, 64)
HEAD = "head"
CHANNEL = "channel"
ELEMENT = "element"


@dataclass(frozen=True)
class Granularity:
    """`channel`: a channel with all its taps; otherwise `width` neighbouring channels at one tap. `head:D` is what an
    attention head of size D gives to the projection behind it, and `channel:P` a channel's P pixels after a Flatten."""

    name: str
    width: int = 1

    @classmethod
    def parse(cls, text: str) -> Granularity:
        """channel, channel:P, element, vector, block or block:B with B in 16, 32, 64, head:D; head alone stands for
        the head:D of each attention. Raises UsageError for anything else."""
        found = re.fullmatch(r"(channel|element|vector|block|head)(?::(\d+))?", text)
        if not found or (found[2] and found[1] not in ("block", CHANNEL, HEAD)):
            raise UsageError(
                f"granularity '{text}' is not one of auto, fastest, channel, channel:P, element, vector, block,"
                " block:16, block:32, block:64, head, head:D"
            )
        if found[1] in (CHANNEL, HEAD):
            width = int(found[2] or 1)
            if width < 1:
                raise UsageError(f"granularity '{text}' has units of no features: {found[1]}:1 is the smallest")
            return cls(text, width)
        if found[1] != "block":
            return cls(text, VECTOR if text == "vector" else 1)
        width = int(found[2] or DEFAULT_BLOCK)
        if width not in BLOCKS:
            raise UsageError(f"granularity 'block:{width}' is not one of block:16, block:32, block:64")
        return cls(f"block:{width}", width)

    def fit(self, taps: int, channels: int) -> Granularity:
        """The same, or the widest narrower one that divides a layer's channels."""
        if taps > 1 and self.name.startswith(CHANNEL):
            return Granularity(CHANNEL)
        whole = self.name.startswith((HEAD, CHANNEL)) and taps == 1 and channels % self.width == 0
        if self.name == CHANNEL or (taps == 1 and self.width == 1) or whole:
            return self
        widths = [w for w in (*reversed(BLOCKS), VECTOR, 1) if w <= self.width and channels % w == 0]
        names = {1: "element", VECTOR: "vector"}
        return Granularity(names.get(widths[0], f"block:{widths[0]}"), widths[0])

    def groups(self, taps: int, channels: int) -> Array:
        """Feature indices of every unit, (units, size), for K = taps · channels ordered tap-major."""
        features = np.arange(taps * channels).reshape(taps, channels)
        if self.name == CHANNEL:
            return features.T
        return features.reshape(-1, self.width)
