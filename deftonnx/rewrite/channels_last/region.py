"""Tensors with channels last, beside the ones with channels first that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx

from deftonnx.formats.channels_last_function import OPERATOR, channels_last_attributes
from deftonnx.formats.operator_function import DOMAIN
from deftonnx.layers.linear import unused_name
from deftonnx.rewrite.packed_conv import channels_first, channels_last
from deftonnx.rewrite.reserved import Reserved

_ADOPTED = (4, 5)
"""Dimensions with which a Transpose to channels first is no Transpose to channels last."""
ALIGNMENT = 8
"""Channels of 16 bits that one load brings. Convolutions fill up fewer with channels of zero weights."""


class Region:
    """`last` gives tensors with channels last, `outputs` makes them.

    A filled tensor has more channels than it should, of finite values that mean nothing: those who read it must
    ignore them. It is (batch, *image, channels + extra).
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.reserved = Reserved(graph)
        self._made: dict[int, gs.Variable] = {}  # by the tensor with channels first
        self._filled: dict[int, tuple[gs.Variable, int]] = {}
        self._transposed: dict[int, gs.Variable] = {}
        self._adopted: set[int] = set()

    def reads_one(self, node: gs.Node) -> bool:
        """True where an input of `node` has been made with channels last, and all its inputs can be."""
        rank = next((len(t.shape) for t in node.inputs if self.holds(t) and t.shape is not None), None)
        varying = [t for t in node.inputs if t.name and not isinstance(t, gs.Constant)]
        if all(id(t) in self._adopted or not self.holds(t) for t in varying) and not all(map(self.holds, varying)):
            return False
        return rank is not None and all(t.shape is not None and len(t.shape) == rank for t in varying)

    def adopt(self, node: gs.Node) -> None:
        """Take in the Transpose to channels first `node`, so that what follows it may move before it.

        Where an operator has another input as well, that must be here too: else one Transpose would become another.
        """
        x, y = node.inputs[0], node.outputs[0]
        if x.shape is None or y.shape is None or len(x.shape) not in _ADOPTED or self.holds(x):
            return
        if node.attrs.get("perm") == channels_first(len(x.shape) - 2):
            self._made[id(y)] = x
            self._adopted.add(id(y))

    def holds(self, tensor: gs.Tensor) -> bool:
        """True where `tensor` has been made with channels last."""
        return id(tensor) in self._made

    def last(self, tensor: gs.Tensor, rank: int | None = None) -> gs.Tensor:
        """`tensor` with channels last; a constant is one that is broadcast to `rank` dimensions."""
        if isinstance(tensor, gs.Constant):
            assert rank is not None
            values = tensor.values.reshape((1,) * (rank - tensor.values.ndim) + tensor.values.shape)
            moved = np.ascontiguousarray(values.transpose(channels_last(rank - 2)))
            return gs.Constant(unused_name(f"{tensor.name}/channels_last_{len(self.graph.nodes)}"), moved)
        if self.holds(tensor):
            return self._made[id(tensor)]
        axes = len(tensor.shape) - 2
        maker = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        if maker is not None and maker.op == "Transpose" and maker.attrs.get("perm") == channels_first(axes):
            return maker.inputs[0]
        if id(tensor) not in self._transposed:
            self._transposed[id(tensor)] = self._like(tensor)
            self._transpose(tensor, self._transposed[id(tensor)], channels_last(axes))
        return self._transposed[id(tensor)]

    def filled(self, tensor: gs.Tensor) -> tuple[gs.Tensor, int]:
        """`tensor` with channels last, filled if it is there so, and how many channels are too many."""
        return self._filled.get(id(tensor)) or (self.last(tensor), 0)

    def outputs(self, tensor: gs.Variable, extra: int = 0) -> gs.Variable:
        """The tensor that a node with channels last makes in place of `tensor`, which is transposed from it.

        The node makes `extra` channels more than `tensor` has.
        """
        result = made = self._like(tensor)
        if extra:
            result = gs.Variable(unused_name(f"{tensor.name}/filled"), made.dtype)
            result.shape = [*made.shape[:-1], made.shape[-1] + extra]
            bounds = [np.array([value]) for value in (0, made.shape[-1], -1)]
            constants = [gs.Constant(unused_name(f"{result.name}/{i}"), value) for i, value in enumerate(bounds)]
            self.graph.nodes.append(gs.Node("Slice", unused_name(result.name), {}, [result, *constants], [made]))
            self._filled[id(tensor)] = (result, extra)
        tensor.inputs.clear()
        self._made[id(tensor)] = made
        self._transpose(made, tensor, channels_first(len(tensor.shape) - 2))
        return result

    def same(self, source: gs.Tensor, tensor: gs.Variable) -> None:
        """`tensor` has the values of `source`, and needs no node to make it."""
        made, extra = self.filled(source)
        if extra:
            self._filled[id(tensor)] = (made, extra)
        tensor.inputs.clear()
        self._made[id(tensor)] = self.last(source)
        self._transpose(self._made[id(tensor)], tensor, channels_first(len(tensor.shape) - 2))

    def _like(self, tensor: gs.Tensor) -> gs.Variable:
        shape: list[Any] = [tensor.shape[axis] for axis in channels_last(len(tensor.shape) - 2)]
        return gs.Variable(unused_name(f"{tensor.name}/channels_last"), tensor.dtype or np.dtype(np.float32), shape)

    def _transpose(self, source: gs.Tensor, result: gs.Tensor, order: list[int]) -> None:
        """A Transpose, or where an image is one pixel or has one channel a Reshape, which costs nothing."""
        name = unused_name(f"{result.name}/transpose")
        target = list(result.shape)[1:]
        known = all(isinstance(size, int) and size > 0 for size in target)
        moved = [axis for axis in order if source.shape[axis] != 1]
        if known and moved == sorted(moved):
            shape = gs.Constant(f"{name}/shape", np.array([0, *target], np.int64))
            self.graph.nodes.append(gs.Node("Reshape", name, {}, [source, shape], [result]))
            return
        axes, channels = len(order) - 2, source.shape[1]
        if order == channels_last(axes) and isinstance(channels, int) and channels < ALIGNMENT:
            # a Transpose would move a value at a time
            attributes = channels_last_attributes(axes, dtype_to_onnx(result.dtype or np.dtype(np.float32)))
            self.graph.nodes.append(gs.Node(OPERATOR, name, attributes, [source], [result], domain=DOMAIN))
            return
        self.graph.nodes.append(gs.Node("Transpose", name, {"perm": order}, [source], [result]))
