"""Gemm with a constant second operand: Y = alpha · A'·B' + beta · C."""

from __future__ import annotations

from collections.abc import Sequence

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
from deftonnx.layers.matmul import sample_rows


def match(node: gs.Node) -> LinearLayer | Refusal | None:
    """`node` as a linear layer; a refusal where it has weights but cannot be one; None where it has no weights."""
    a, b, *rest = node.inputs
    if isinstance(a, gs.Constant) and not isinstance(b, gs.Constant):
        return Refusal(node.name, node.op, "its weight is the first operand")
    if not isinstance(b, gs.Constant) or isinstance(a, gs.Constant):
        return None
    if b.dtype not in FLOAT_TYPES:
        return Refusal(node.name, node.op, f"its weight has type {b.dtype}")
    N = b.shape[0 if node.attrs.get("transB", 0) else 1]
    if rest and rest[0].name:
        c = rest[0]
        if not isinstance(c, gs.Constant):
            return Refusal(node.name, node.op, "its bias is not constant")
        if c.shape and not (c.shape[-1] in (1, N) and all(d == 1 for d in c.shape[:-1])):
            return Refusal(node.name, node.op, "its bias differs from row to row")
    return GemmLayer(node)


class GemmLayer(BiasInputLayer):
    """x (M, K), or (K, M) with transA. Writing back sets alpha and beta to 1 and keeps transA and transB."""

    def __init__(self, node: gs.Node) -> None:
        rows, columns = node.inputs[1].shape
        K, N = (columns, rows) if node.attrs.get("transB", 0) else (rows, columns)
        super().__init__(node, x=node.inputs[0], groups=1, taps=1, channels=K, outputs=N)

    @property
    def y(self) -> gs.Tensor:
        return self.node.outputs[0]

    @property
    def input_axis(self) -> int:
        return 0 if self.node.attrs.get("transA", 0) else 1

    @property
    def output_axis(self) -> int:
        return 1

    def weight(self) -> Array:
        w = self.node.inputs[1].values
        w = (w.T if self.node.attrs.get("transB", 0) else w)[None]
        return w.astype(np.result_type(w.dtype, np.float32)) * np.float32(self.node.attrs.get("alpha", 1.0))

    def bias(self) -> Array | None:
        if not self.has_bias():
            return None
        c = self.node.inputs[2].values
        c = np.broadcast_to(c.reshape(-1), (self.N,)).astype(np.result_type(c.dtype, np.float32))
        return c * np.float32(self.node.attrs.get("beta", 1.0))

    def store(self, weight: Array, bias: Array | None) -> None:
        dtype = self.node.inputs[1].dtype
        w = weight[0].T if self.node.attrs.get("transB", 0) else weight[0]
        replace_constant(self.node, 1, w.astype(dtype))
        self.node.attrs["alpha"] = 1.0
        if bias is not None:
            self.node.attrs["beta"] = 1.0
            self.store_bias(bias)

    def rows(self, x: Array, limit: int, rng: np.random.Generator) -> Array:
        x = x.T if self.input_axis == 0 else x
        return sample_rows(x[:, None, :], limit, rng).astype(np.float32)

    def keep_inputs(self, alive: Sequence[int] | Array) -> None:
        self._take(np.asarray(alive), axis=1 if self.node.attrs.get("transB", 0) else 0)
        self.kept = self.kept[:, :, np.asarray(alive)]
        self.channels = len(alive)

    def keep_outputs(self, alive: Sequence[int] | Array) -> None:
        self._take(np.asarray(alive), axis=0 if self.node.attrs.get("transB", 0) else 1)
        if self.has_bias() and self.node.inputs[2].values.size > 1:
            replace_constant(self.node, 2, self.node.inputs[2].values.take(np.asarray(alive), axis=-1))
        self.outputs = len(alive)

    def _take(self, alive: Array, axis: int) -> None:
        replace_constant(self.node, 1, self.node.inputs[1].values.take(alive, axis=axis))

    def rows_per_sample(self) -> tuple[str, int]:
        return dimension_rule([self.x.shape[1 - self.input_axis] if self.x.shape else None])
