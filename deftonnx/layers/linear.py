"""The view of one ONNX node as a linear layer Y[M,N] = X[M,K]·W[K,N] + b[N] (paper §4.1, equation 1).

K, the input features, are ordered tap-major: k = tap · channels + channel, where a tap is one position of a
convolution's kernel window (a MatMul has one tap). A grouped layer is `groups` such products side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

Array = np.ndarray[Any, Any]
FLOAT_TYPES = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class Refusal:
    """Why a node that multiplies by weights is left alone."""

    name: str
    op: str
    reason: str


class LinearLayer(ABC):
    """One node as Y = X·W + b, with the edits that elimination and absorption need.

    `kept` is the plan's decision, a boolean array (groups, taps, channels); everything is kept at first.
    Weights cross this interface as (groups, K, outputs), biases as (groups · outputs,), both float32 or wider.
    """

    shares_choice: ClassVar[bool] = False
    """True where every group must keep the same features (a batched MatMul has one Gather for all of them)."""

    def __init__(self, node: gs.Node, *, x: gs.Tensor, groups: int, taps: int, channels: int, outputs: int) -> None:
        self.node = node
        self.graph: gs.Graph  # set by find_layers
        self.x = x
        self.groups, self.taps, self.channels, self.outputs = groups, taps, channels, outputs
        self.kept = np.ones((groups, taps, channels), dtype=bool)

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def op(self) -> str:
        return str(self.node.op)

    @property
    def K(self) -> int:
        """Input features of one group."""
        return self.taps * self.channels

    @property
    def N(self) -> int:
        """Output features of all groups."""
        return self.groups * self.outputs

    @property
    def input_features(self) -> int:
        """Length of `x` along `input_axis`."""
        return self.groups * self.channels

    @property
    def output_features(self) -> int:
        """Length of `y` along `output_axis`."""
        return self.N

    @property
    @abstractmethod
    def y(self) -> gs.Tensor:
        """The tensor that holds X·W + b."""

    @property
    @abstractmethod
    def input_axis(self) -> int:
        """Axis of `x` that holds groups · channels, counted from the end if negative."""

    @property
    @abstractmethod
    def output_axis(self) -> int:
        """Axis of `y` that holds the output features, counted from the end if negative."""

    @property
    def geometry(self) -> tuple[Any, ...]:
        """Layers that read the same `x` with the same geometry see the same rows of X."""
        return (self.input_axis, self.groups, self.taps, self.channels)

    @abstractmethod
    def weight(self) -> Array:
        """The weights, (groups, K, outputs)."""

    @abstractmethod
    def bias(self) -> Array | None:
        """The bias, (groups · outputs,), or None where the layer has none."""

    @abstractmethod
    def store(self, weight: Array, bias: Array | None) -> None:
        """Write weights (groups, K, outputs) and bias (groups · outputs,) back into the graph, cast to its type."""

    @abstractmethod
    def rows(self, x: Array, limit: int, rng: np.random.Generator) -> Array:
        """At most `limit` rows of X, (rows, groups, K) float32, sampled without replacement from activations `x`."""

    def row_bias(self, weight: Array, bias: Array | None) -> Array:
        """The bias as it adds to one row of X·W, (groups, outputs)."""
        if bias is None:
            return np.zeros(weight.shape[::2], dtype=np.float32)
        return bias.reshape(weight.shape[::2])

    def bias_from_rows(self, row_bias: Array) -> Array:
        """The inverse of `row_bias`: the layer's bias (groups · outputs,) for a wanted shift of each row."""
        return row_bias.reshape(-1)

    @abstractmethod
    def keep_inputs(self, alive: Sequence[int] | Array) -> None:
        """Drop or reorder the channels of `x`: `alive` are indices into groups · channels, equally many a group."""

    @abstractmethod
    def keep_outputs(self, alive: Sequence[int] | Array) -> None:
        """Drop or reorder output features: `alive` are indices into groups · outputs, equally many a group."""

    @abstractmethod
    def rows_per_sample(self) -> tuple[str, int]:
        """The rule for M in words ('N·32·32') and its value for one sample, dimensions that are not known being 1."""

    def input_positions(self) -> int:
        """Numbers of `x` for one sample and feature: what a Gather of one feature copies."""
        return self.rows_per_sample()[1]

    def macs(self) -> int:
        """Multiply-adds a sample for the features kept."""
        return self.rows_per_sample()[1] * int(self.kept.sum()) * self.outputs

    def parameters(self) -> int:
        """Weights (kept ones) and biases."""
        bias = self.bias()
        return int(self.kept.sum()) * self.outputs + (0 if bias is None else bias.size)

    def constant_bytes(self) -> int:
        """Bytes of all constants that the layer's nodes read, in the form that the graph has them in now."""
        producers = self.y.inputs if self.op == "MatMul" else []  # an Add that holds the bias
        nodes = {id(node): node for node in (self.node, *producers)}
        return sum(constant_bytes(node) for node in nodes.values())

    def _slice_kept(self, alive: Array) -> tuple[Array, Array]:
        """Per-group channel indices (groups, channels') for `keep_inputs`, and `kept` taken along them."""
        index = np.asarray(alive, dtype=np.int64).reshape(self.groups, -1) - (
            np.arange(self.groups)[:, None] * self.channels
        )  # (groups, channels')
        kept = np.take_along_axis(self.kept, index[:, None, :], axis=2)
        return index, kept


class BiasInputLayer(LinearLayer):
    """A layer whose node takes its weight as second input and its bias, (groups · outputs,), as optional third."""

    def has_bias(self) -> bool:
        """True where the node has a third input."""
        return len(self.node.inputs) > 2 and bool(self.node.inputs[2].name)

    def bias(self) -> Array | None:
        if not self.has_bias():
            return None
        b = self.node.inputs[2].values
        return b.astype(np.result_type(b.dtype, np.float32))

    def store_bias(self, bias: Array | None) -> None:
        """Write the bias; a node without one only gets it if it is not zero."""
        if bias is None or (not self.has_bias() and not bias.any()):
            return
        values = bias.astype(self.node.inputs[1].dtype)
        if self.has_bias():
            replace_constant(self.node, 2, values)
        else:
            set_constant(self.node, 2, gs.Constant(unused_name(f"{self.name}/bias"), values))


def is_standard(node: gs.Node) -> bool:
    """True for a node of the standard ONNX operators."""
    return node.domain in (None, "", "ai.onnx")


def constant_bytes(node: gs.Node) -> int:
    """Bytes of the constants that a node reads, without loading them."""
    return sum(int(t._values.nbytes) for t in node.inputs if isinstance(t, gs.Constant))


class StoredValues(LazyValues):
    """A constant's values in an array that may be bfloat16, which NumPy itself has not: onnx-graphsurgeon knows such
    values as a message only."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape = array.shape
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        self.dtype = kind if kind == onnx.TensorProto.BFLOAT16 else array.dtype
        self.nbytes = array.nbytes

    @property
    def tensor(self) -> onnx.TensorProto:
        """The message, made anew."""
        kind = onnx.helper.np_dtype_to_tensor_dtype(self.array.dtype)
        return onnx.TensorProto(data_type=kind, dims=self.shape, raw_data=self.array.tobytes())

    def load(self) -> Array:
        """The values."""
        return self.array


def stored(constant: gs.Constant) -> Array:
    """The values of a constant that may be bfloat16, which `constant.values` is not made for."""
    held = constant._values
    if isinstance(held, StoredValues):
        return held.array
    values: Array = onnx.numpy_helper.to_array(held.tensor) if isinstance(held, LazyValues) else constant.values
    return values


def stored_as(name: str, values: Array) -> gs.Constant:
    """A constant of that name with `values`, which may be bfloat16."""
    return gs.Constant(name, StoredValues(values))


def replace_constant(node: gs.Node, index: int, values: Array) -> None:
    """Give input `index` of `node` new values without touching other users of a shared initializer."""
    old = node.inputs[index]
    values = np.ascontiguousarray(values)
    if len(old.outputs) == 1 and old.outputs[0] is node and sum(t is old for t in node.inputs) == 1:
        old.values = values
        return
    node.inputs[index] = gs.Constant(unused_name(f"{old.name}/{node.name or node.op}/{index}"), values)


def set_constant(node: gs.Node, index: int, constant: gs.Constant) -> None:
    """Make `constant` input `index` of `node`, which may have had fewer inputs."""
    node.inputs = [*node.inputs[:index], constant, *node.inputs[index + 1 :]]


def unused_name(stem: str) -> str:
    """A tensor name of our own: `stem` marked so that exporters' names never collide with it."""
    return f"{stem}/deft"


def dimension_rule(dims: Sequence[Any]) -> tuple[str, int]:
    """A product of dimensions in words and for one sample: names and unknowns count as 1."""
    words = "·".join(str(d) if d is not None else "?" for d in dims) or "1"
    size = 1
    for d in dims:
        size *= d if isinstance(d, int) and d > 0 else 1
    return words, size
