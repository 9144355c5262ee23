"""ConvTranspose as Y = X·W, where a row of X is one input pixel and W holds every tap of every output feature.

Overlapping taps are summed after the product, so least squares on its rows is exact where stride ≥ kernel and a
close stand-in elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers import conv
from deftonnx.layers.linear import (
    Array,
    BiasInputLayer,
    LinearLayer,
    Refusal,
    dimension_rule,
    replace_constant,
)
from deftonnx.layers.matmul import sample_rows


def match(node: gs.Node) -> LinearLayer | Refusal | None:
    """`node` as a linear layer; a refusal where it has weights but cannot be one; None where it has no weights."""
    refusal = conv.refuse(node)
    if refusal is not None or isinstance(node.inputs[0], gs.Constant):
        return refusal
    layer = ConvTransposeLayer(node)
    return Refusal(node.name, node.op, conv.DEPTHWISE) if layer.groups > 1 and layer.channels == 1 else layer


class ConvTransposeLayer(BiasInputLayer):
    """x (batch, groups · channels, *spatial), weight tensor (groups · channels, features, *kernel).

    `outputs` counts features · window taps: the columns of W before the overlapping windows are summed.
    """

    def __init__(self, node: gs.Node) -> None:
        inputs, self.features, *kernel = node.inputs[1].shape
        self.kernel = tuple(kernel)
        self.window = int(np.prod(kernel))
        groups = node.attrs.get("group", 1)
        super().__init__(
            node,
            x=node.inputs[0],
            groups=groups,
            taps=1,
            channels=inputs // groups,
            outputs=self.features * self.window,
        )

    @property
    def N(self) -> int:
        return self.groups * self.features

    @property
    def y(self) -> gs.Tensor:
        return self.node.outputs[0]

    @property
    def input_axis(self) -> int:
        return 1

    @property
    def output_axis(self) -> int:
        return 1

    def _overlap(self) -> float:
        """How many taps add up in one output pixel, away from the border."""
        return self.window / float(np.prod(self.node.attrs.get("strides") or [1]))

    def weight(self) -> Array:
        w = self.node.inputs[1].values.reshape(self.groups, self.channels, self.outputs)
        return w.astype(np.result_type(w.dtype, np.float32))

    def row_bias(self, weight: Array, bias: Array | None) -> Array:
        if bias is None:
            return np.zeros(weight.shape[::2], dtype=np.float32)
        return np.repeat(bias / self._overlap(), self.window).reshape(weight.shape[::2])

    def bias_from_rows(self, row_bias: Array) -> Array:
        return row_bias.reshape(self.groups * self.features, self.window).mean(1) * self._overlap()

    def store(self, weight: Array, bias: Array | None) -> None:
        dtype = self.node.inputs[1].dtype
        shape = (self.groups * weight.shape[1], self.features, *self.kernel)
        replace_constant(self.node, 1, weight.reshape(shape).astype(dtype))
        self.store_bias(bias)

    def rows(self, x: Array, limit: int, rng: np.random.Generator) -> Array:
        pixels = np.moveaxis(x, 1, -1).reshape(-1, self.groups, self.channels)
        return sample_rows(pixels, limit, rng).astype(np.float32)

    def keep_inputs(self, alive: Sequence[int] | Array) -> None:
        index, self.kept = self._slice_kept(np.asarray(alive))
        replace_constant(self.node, 1, self.node.inputs[1].values.take(np.asarray(alive), axis=0))
        self.channels = index.shape[1]

    def keep_outputs(self, alive: Sequence[int] | Array) -> None:
        index = np.asarray(alive).reshape(self.groups, -1) - np.arange(self.groups)[:, None] * self.features
        w = self.node.inputs[1].values
        w = w.reshape(self.groups, self.channels, *w.shape[1:])
        replace_constant(self.node, 1, np.concatenate([p.take(i, axis=1) for p, i in zip(w, index, strict=True)]))
        if self.has_bias():
            replace_constant(self.node, 2, self.node.inputs[2].values.take(np.asarray(alive), axis=0))
        self.features = index.shape[1]
        self.outputs = self.features * self.window

    def rows_per_sample(self) -> tuple[str, int]:
        shape = self.x.shape
        return dimension_rule([None] if shape is None else [shape[0], *shape[2:]])
