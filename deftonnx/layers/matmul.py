"""MatMul by a constant: Y = X·W or Y = W·X, 2-D or batched, with a following Add as its bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import (
    FLOAT_TYPES,
    Array,
    LinearLayer,
    Refusal,
    dimension_rule,
    is_standard,
    replace_constant,
    unused_name,
)


def match(node: gs.Node) -> LinearLayer | Refusal | None:
    """`node` as a linear layer; a refusal where it has weights but cannot be one; None where it has no weights."""
    constants = [isinstance(t, gs.Constant) for t in node.inputs[:2]]
    if not any(constants) or all(constants):
        return None
    side = constants.index(True)
    shape = node.inputs[side].shape
    if len(shape) < 2:
        return Refusal(node.name, node.op, "its weight is a vector")
    x = node.inputs[1 - side]
    if x.shape is not None and len(x.shape) < 2 and (side == 0 or len(shape) > 2):
        return Refusal(node.name, node.op, "its input is a vector")
    if node.inputs[side].dtype not in FLOAT_TYPES:
        return Refusal(node.name, node.op, f"its weight has type {node.inputs[side].dtype}")
    return MatMulLayer(node, weight_side=side)


class MatMulLayer(LinearLayer):
    """`weight_side` 1: x (..., M, K), W (..., K, N), y (..., M, N). 0: x (..., K, M), W (..., N, K), y (..., N, M).

    The batch dimensions of W are the layer's groups; they share one choice of features, since x has one axis K.
    """

    shares_choice = True

    def __init__(self, node: gs.Node, weight_side: int) -> None:
        self.weight_side = weight_side
        *batch, rows, columns = node.inputs[weight_side].shape
        K, N = (rows, columns) if weight_side == 1 else (columns, rows)
        super().__init__(
            node, x=node.inputs[1 - weight_side], groups=int(np.prod(batch)), taps=1, channels=K, outputs=N
        )
        self.batch = tuple(batch)
        self.add = self._bias_add()

    @property
    def input_features(self) -> int:
        return self.channels

    @property
    def output_features(self) -> int:
        return self.outputs

    @property
    def y(self) -> gs.Tensor:
        return (self.add or self.node).outputs[0]

    @property
    def input_axis(self) -> int:
        return -1 if self.weight_side == 1 else -2

    @property
    def output_axis(self) -> int:
        return self.input_axis

    def _bias_add(self) -> gs.Node | None:
        """The Add of a constant per output feature that alone reads the product, if there is one."""
        users = self.node.outputs[0].outputs
        if len(users) != 1 or users[0].op != "Add" or not is_standard(users[0]) or self.groups != 1:
            return None
        other = [t for t in users[0].inputs if t is not self.node.outputs[0]]
        if len(other) != 1 or not isinstance(other[0], gs.Constant) or other[0].dtype not in FLOAT_TYPES:
            return None
        shape = tuple(other[0].shape)
        wanted = (self.outputs,) if self.weight_side == 1 else (self.outputs, 1)
        core = shape[-len(wanted) :]
        rank = len(self.x.shape) if self.x.shape is not None else 2
        fits = core == wanted and all(d == 1 for d in shape[: -len(wanted)]) and len(shape) <= max(rank, 2)
        return users[0] if fits else None

    def _bias_index(self) -> int:
        assert self.add is not None
        return next(i for i, t in enumerate(self.add.inputs) if isinstance(t, gs.Constant))

    def weight(self) -> Array:
        w = self.node.inputs[self.weight_side].values
        w = w.reshape(self.groups, *w.shape[-2:])
        w = w if self.weight_side == 1 else w.transpose(0, 2, 1)
        return w.astype(np.result_type(w.dtype, np.float32))

    def bias(self) -> Array | None:
        if self.add is None:
            return None
        b = self.add.inputs[self._bias_index()].values.reshape(-1)
        return b.astype(np.result_type(b.dtype, np.float32))

    def store(self, weight: Array, bias: Array | None) -> None:
        dtype = self.node.inputs[self.weight_side].dtype
        w = weight if self.weight_side == 1 else weight.transpose(0, 2, 1)
        replace_constant(self.node, self.weight_side, w.reshape(*self.batch, *w.shape[1:]).astype(dtype))
        if bias is None:
            return
        if self.add is None:
            if not bias.any():
                return
            self._insert_add()
        assert self.add is not None
        index = self._bias_index()
        outputs = weight.shape[2]
        shape: tuple[int, ...] = (outputs,) if self.weight_side == 1 else (outputs, 1)
        if self.groups > 1:
            shape = (*self.batch, *((1, outputs) if self.weight_side == 1 else (outputs, 1)))
        replace_constant(self.add, index, bias.reshape(shape).astype(dtype))

    def _insert_add(self) -> None:
        product, y = gs.Variable(unused_name(f"{self.name}/product")), self.node.outputs[0]
        product.dtype, product.shape = y.dtype, y.shape
        self.node.outputs = [product]
        placeholder = gs.Constant(unused_name(f"{self.name}/bias"), np.zeros(1, dtype=np.float32))
        self.add = gs.Node("Add", unused_name(f"{self.name}/bias_add"), inputs=[product, placeholder], outputs=[y])
        self.graph.nodes.insert(self.graph.nodes.index(self.node) + 1, self.add)

    def rows(self, x: Array, limit: int, rng: np.random.Generator) -> Array:
        if self.weight_side == 0:
            x = np.swapaxes(x, -1, -2)
        if x.ndim == 1:
            x = x[None]
        if self.groups == 1:
            flat = x.reshape(-1, 1, self.K)
        else:  # x broadcasts against the weight's batch dimensions
            lead = np.broadcast_shapes(x.shape[:-2], self.batch)
            x = np.broadcast_to(x, lead + x.shape[-2:])
            x = x.reshape(-1, self.groups, *x.shape[-2:])  # (batches, groups, M, K)
            flat = np.swapaxes(x, 1, 2).reshape(-1, self.groups, self.K)
        return sample_rows(flat, limit, rng).astype(np.float32)

    def keep_inputs(self, alive: Sequence[int] | Array) -> None:
        alive = np.asarray(alive)
        axis = -2 if self.weight_side == 1 else -1
        weight = self.node.inputs[self.weight_side].values
        replace_constant(self.node, self.weight_side, weight.take(alive, axis=axis))
        self.kept = self.kept[:, :, alive]
        self.channels = len(alive)

    def keep_outputs(self, alive: Sequence[int] | Array) -> None:
        alive = np.asarray(alive)
        axis = -1 if self.weight_side == 1 else -2
        weight = self.node.inputs[self.weight_side].values
        replace_constant(self.node, self.weight_side, weight.take(alive, axis=axis))
        if self.add is not None:
            index = self._bias_index()
            replace_constant(self.add, index, self.add.inputs[index].values.take(alive, axis=axis))
        self.outputs = len(alive)

    def rows_per_sample(self) -> tuple[str, int]:
        shape: list[Any] = list(self.x.shape) if self.x.shape is not None else [None]
        if len(shape) > 1:
            del shape[self.input_axis]
        else:
            shape = [1]
        if self.groups > 1 and len(shape) > len(self.batch):
            shape = shape[: -1 - len(self.batch)] + shape[-1:]
        return dimension_rule(shape)


def sample_rows(rows: Array, limit: int, rng: np.random.Generator) -> Array:
    """At most `limit` of `rows` (R, ...), without replacement, in order."""
    if len(rows) <= limit:
        return rows
    return rows[np.sort(rng.choice(len(rows), limit, replace=False))]
