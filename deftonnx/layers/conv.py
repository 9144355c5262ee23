"""Conv in one, two or three dimensions as Y = X·W, where a row of X is one window of the input (im2col)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import (
    FLOAT_TYPES,
    Array,
    BiasInputLayer,
    LinearLayer,
    Refusal,
    dimension_rule,
    replace_constant,
)

DEPTHWISE = "depthwise: each output reads one input channel"


def match(node: gs.Node) -> LinearLayer | Refusal | None:
    """`node` as a linear layer; a refusal where it has weights but cannot be one; None where it has no weights."""
    refusal = refuse(node)
    if refusal is not None or isinstance(node.inputs[0], gs.Constant):
        return refusal
    layer = ConvLayer(node)
    return Refusal(node.name, node.op, DEPTHWISE) if layer.groups > 1 and layer.channels == 1 else layer


def refuse(node: gs.Node) -> Refusal | None:
    """Why a Conv or ConvTranspose whose parameters are unsuitable is left alone."""
    w = node.inputs[1]
    if not isinstance(w, gs.Constant):
        return Refusal(node.name, node.op, "its weight is not constant")
    if w.dtype not in FLOAT_TYPES:
        return Refusal(node.name, node.op, f"its weight has type {w.dtype}")
    groups = node.attrs.get("group", 1)
    if groups < 1 or w.shape[0] % groups:  # ONNX Runtime finds this out when it runs the model
        return Refusal(node.name, node.op, f"its weight does not divide into {groups} groups")
    if len(node.inputs) > 2 and node.inputs[2].name and not isinstance(node.inputs[2], gs.Constant):
        return Refusal(node.name, node.op, "its bias is not constant")
    return None


class ConvLayer(BiasInputLayer):
    """x (batch, groups · channels, *spatial), weight tensor (groups · outputs, channels, *kernel)."""

    def __init__(self, node: gs.Node) -> None:
        self.kernel: tuple[int, ...] = tuple(node.inputs[1].shape[2:])
        groups = node.attrs.get("group", 1)
        super().__init__(
            node,
            x=node.inputs[0],
            groups=groups,
            taps=int(np.prod(self.kernel)),
            channels=node.inputs[1].shape[1],
            outputs=node.inputs[1].shape[0] // groups,
        )

    @property
    def y(self) -> gs.Tensor:
        return self.node.outputs[0]

    @property
    def input_axis(self) -> int:
        return 1

    @property
    def output_axis(self) -> int:
        return 1

    @property
    def strides(self) -> list[int]:
        return list(self.node.attrs.get("strides") or [1] * len(self.kernel))

    @property
    def dilations(self) -> list[int]:
        return list(self.node.attrs.get("dilations") or [1] * len(self.kernel))

    @property
    def geometry(self) -> tuple[Any, ...]:
        attrs = self.node.attrs
        window = (self.kernel, tuple(self.strides), tuple(self.dilations))
        return (*super().geometry, *window, tuple(attrs.get("pads") or ()), attrs.get("auto_pad", "NOTSET"))

    def weight(self) -> Array:
        w = self.node.inputs[1].values
        w = w.reshape(self.groups, self.outputs, self.channels, self.taps)
        w = w.transpose(0, 3, 2, 1).reshape(self.groups, self.K, self.outputs)
        return w.astype(np.result_type(w.dtype, np.float32))

    def store(self, weight: Array, bias: Array | None) -> None:
        dtype = self.node.inputs[1].dtype
        outputs, channels = weight.shape[2], weight.shape[1] // self.taps
        w = weight.reshape(self.groups, self.taps, channels, outputs).transpose(0, 3, 2, 1)
        replace_constant(self.node, 1, w.reshape(self.groups * outputs, channels, *self.kernel).astype(dtype))
        self.store_bias(bias)

    def rows(self, x: Array, limit: int, rng: np.random.Generator) -> Array:
        pads, out = self.window_grid(x.shape[2:])
        padded = np.pad(np.moveaxis(x, 1, -1), [(0, 0), *pads, (0, 0)])  # (batch, *spatial, all channels)
        grid = padded.shape[:-1]
        total = int(np.prod((len(x), *out)))
        if total == 0:
            return np.zeros((0, self.groups, self.K), dtype=np.float32)
        pick = np.arange(total) if total <= limit else np.sort(rng.choice(total, limit, replace=False))
        batch, *where = np.unravel_index(pick, (len(x), *out))
        corner = [w * s for w, s in zip(where, self.strides, strict=True)]
        base = np.ravel_multi_index((batch, *corner), grid)  # (rows,) window corners in the flat grid
        tap = np.indices(self.kernel).reshape(len(self.kernel), -1) * np.array(self.dilations)[:, None]
        # strides of the flat grid, so that a tap is one constant offset from its window's corner
        step = np.cumprod((1, *grid[:0:-1]))[::-1][1:]
        offset = (tap * step[:, None]).sum(0)  # (taps,)
        windows = padded.reshape(-1, padded.shape[-1])[base[:, None] + offset]  # (rows, taps, all channels)
        windows = windows.reshape(len(pick), self.taps, self.groups, self.channels).swapaxes(1, 2)
        return windows.reshape(len(pick), self.groups, self.K).astype(np.float32)

    def window_grid(self, spatial: Sequence[int]) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
        """Padding (begin, end) of every spatial axis and the output's spatial shape, for an input of this size."""
        rank = len(self.kernel)
        extent = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        auto = self.node.attrs.get("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            pads = []
            for size, stride, e in zip(spatial, self.strides, extent, strict=True):
                total = max((-(-size // stride) - 1) * stride + e - size, 0)
                small, large = total // 2, total - total // 2
                pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        elif auto == "VALID":
            pads = [(0, 0)] * rank
        else:
            flat = list(self.node.attrs.get("pads") or [0] * 2 * rank)
            pads = list(zip(flat[:rank], flat[rank:], strict=True))
        out = tuple(
            (size + sum(p) - e) // stride + 1
            for size, p, e, stride in zip(spatial, pads, extent, self.strides, strict=True)
        )
        return pads, out

    def keep_inputs(self, alive: Sequence[int] | Array) -> None:
        index, self.kept = self._slice_kept(np.asarray(alive))
        w = self.node.inputs[1].values
        w = w.reshape(self.groups, self.outputs, *w.shape[1:])
        w = np.concatenate([part.take(i, axis=1) for part, i in zip(w, index, strict=True)])
        replace_constant(self.node, 1, w)
        self.channels = index.shape[1]

    def keep_outputs(self, alive: Sequence[int] | Array) -> None:
        alive = np.asarray(alive)
        replace_constant(self.node, 1, self.node.inputs[1].values.take(alive, axis=0))
        if self.has_bias():
            replace_constant(self.node, 2, self.node.inputs[2].values.take(alive, axis=0))
        self.outputs = len(alive) // self.groups

    def rows_per_sample(self) -> tuple[str, int]:
        shape = self.y.shape
        return dimension_rule([None] if shape is None else [shape[0], *shape[2:]])

    def input_positions(self) -> int:
        return dimension_rule([None] if self.x.shape is None else self.x.shape[2:])[1]
