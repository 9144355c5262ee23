"""The questions that clocks answer: what a layer computes, and the form in which it could be written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import TensorProto

from deftonnx.formats.conv_function import Window
from deftonnx.formats.gemm_function import ANY_KERNEL

STOCK, DEFT = "ONNX Runtime", "packed"
"""Whose operator computes a layer."""
BYTES: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2}


@dataclass(frozen=True)
class Product:
    """Y (samples, rows, N) = X (samples, rows, K) · W + bias, with an activation if `activated`."""

    rows: int
    K: int
    N: int
    activated: bool

    @property
    def features(self) -> int:
        """Values that one output is a sum over."""
        return self.K

    def outputs(self) -> int:
        """Values of Y for one sample."""
        return self.rows * self.N

    def inputs(self) -> int:
        """Values of X for one sample."""
        return self.rows * self.K


@dataclass(frozen=True)
class Convolution:
    """Conv with a bias of (samples, channels, *image), with an activation if `activated`."""

    image: tuple[int, ...]
    channels: int
    N: int
    window: Window
    activated: bool

    @property
    def features(self) -> int:
        """Values that one output is a sum over."""
        return self.channels // self.window.group * math.prod(self.window.kernel_shape)

    def made(self) -> tuple[int, ...]:
        """The image axes of Y."""
        w, axes = self.window, len(self.image)
        return tuple(
            (self.image[i] + w.pads[i] + w.pads[axes + i] - w.dilations[i] * (w.kernel_shape[i] - 1) - 1)
            // w.strides[i]
            + 1
            for i in range(axes)
        )

    def outputs(self) -> int:
        """Values of Y for one sample."""
        return math.prod(self.made()) * self.N

    def inputs(self) -> int:
        """Values of X for one sample."""
        return math.prod(self.image) * self.channels


Work = Product | Convolution


@dataclass(frozen=True)
class Form:
    """How a layer is written. `operator`: STOCK or DEFT. `type`: TensorProto element type of the activations.
    `format`: of a packed weight. `density`: of the features that are kept. `block`: the features of a kept block that
    the kernel walks (0: none). `gather`: a Gather takes the kept features before the layer. `compute`: DeftGemm's
    attribute, which kernels may serve."""

    operator: str
    type: int
    format: str = ""
    density: float = 1.0
    block: int = 0
    gather: bool = False
    compute: str = ANY_KERNEL


def kept_features(work: Work, form: Form) -> int:
    """Features that are multiplied: `density` of them, in whole blocks, at least one."""
    unit = form.block or 1
    return max(1, round(work.features // unit * form.density)) * unit
