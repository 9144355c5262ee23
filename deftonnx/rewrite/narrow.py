"""Give activations between DeftGemm nodes, and the graph's inputs and outputs, a 16-bit type.

A DeftGemm reads and writes any of float32, float16 and bfloat16, whichever its format. So a tensor may be narrow where
only DeftGemm nodes, and operators that carry every type through, make and read it. Tensors that must have one type (a
residual and the output that it is added to; what an operator carries through) stand or fall together: a chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from deftonnx.layers import Refusal
from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.fuse import is_deft_gemm
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.output_types import tell_output_types
from deftonnx.rewrite.reserved import Reserved

TYPES: dict[str, tuple[Any, int]] = {
    "float16": (np.float16, TensorProto.FLOAT16),
    "bfloat16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
}
OLDEST_OPSET = 13
"""Of bfloat16."""
LARGEST = {"float16": 65504.0 / 2, "bfloat16": float(np.finfo(np.float32).max) / 2}
"""Largest value of calibration data that a type is trusted with: half of its range, since other data reach further."""
SMALLEST = {"float16": 2.0**-10, "bfloat16": 0.0}
"""Least largest value: the rest of a tensor that reaches no further would be lost among float16's subnormals."""
MOVING = {"Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that move numbers, which ONNX Runtime does for every type; data come first, or are all inputs of Concat."""
COMPUTING = {"Abs", "Add", "LeakyRelu", "Mul", "Neg", "Relu", "Sigmoid", "Sub", "Tanh"}
"""Operators that ONNX Runtime computes in float16 on every provider, though not in bfloat16."""
_RESIDUAL = 5


@dataclass
class Chain:
    """Tensors that must have one type, the operators between them, and why they cannot be narrow."""

    tensors: list[gs.Tensor]
    nodes: list[gs.Node] = field(default_factory=list)
    obstacle: str | None = None


def chains(graph: gs.Graph, asked: str) -> list[Chain]:
    """The chains of float32 tensors that DeftGemm nodes make or the graph's inputs are; `asked` is a key of TYPES."""
    passing = MOVING | COMPUTING if asked == "float16" else MOVING
    carrying = {id(node) for node in graph.nodes if _carries(node, passing)}
    parent: dict[int, gs.Tensor] = {}

    def root(tensor: gs.Tensor) -> gs.Tensor:
        while (above := parent.get(id(tensor))) is not None:
            tensor = above
        return tensor

    for node in graph.nodes:
        linked = node.outputs + _data(node) if id(node) in carrying else []
        linked = [node.outputs[0], *node.inputs[_RESIDUAL:]] if is_deft_gemm(node) else linked
        for tensor in linked[1:]:
            if root(tensor) is not root(linked[0]):
                parent[id(root(tensor))] = root(linked[0])
    found: dict[int, Chain] = {}
    reserved = Reserved(graph, outputs=False)
    for tensor in _float_tensors(graph):
        chain = found.setdefault(id(root(tensor)), Chain([]))
        chain.tensors.append(tensor)
        chain.nodes += [node for node in tensor.inputs if id(node) in carrying]
        chain.obstacle = chain.obstacle or _obstacle(tensor, carrying, reserved, graph)
    return [chain for chain in found.values() if any(_starts(t, graph) for t in chain.tensors)]


def narrow(graph: gs.Graph, asked: str, ranges: dict[str, float]) -> list[Refusal]:
    """Narrow what can be, in place; inputs and outputs of the graph that cannot are left, with the reason.

    `ranges` holds the largest magnitude of tensors on calibration data, as far as it is known. A chain inside the graph
    that float16 may not hold becomes bfloat16.
    """
    borders = [*graph.inputs, *graph.outputs]
    refusals = []
    for chain in chains(graph, asked):
        at_border = any(t is border for t in chain.tensors for border in borders)
        kind = _type_of(chain, asked, ranges, at_border)
        if kind is not None:
            _retype(chain, kind)
    for border in borders:
        if border.dtype != np.float32 or not isinstance(border, gs.Variable):
            continue
        if ranges.get(border.name, 0.0) > LARGEST[asked]:
            what = "input" if any(border is t for t in graph.inputs) else "output"
            refusals.append(Refusal(border.name, what, f"its values reach {ranges[border.name]:.3g}"))
        elif any(border is t for t in graph.inputs):
            _cast_input(graph, border, asked)
        elif border.inputs:
            _cast_output(graph, border, asked)
    tell_output_types(graph)
    sort_nodes(graph)
    return refusals


def _carries(node: gs.Node, passing: set[str]) -> bool:
    return is_standard(node) and node.op in passing and not any(isinstance(t, gs.Constant) for t in _data(node))


def _data(node: gs.Node) -> list[gs.Tensor]:
    """The inputs whose type is that of the outputs."""
    everything = node.op == "Concat" or node.op in COMPUTING
    return list(node.inputs) if everything else [node.inputs[0]]


def _float_tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    yield from (t for t in graph.inputs if t.dtype == np.float32)
    for node in graph.nodes:
        yield from (t for t in node.outputs if t.dtype == np.float32)


def _starts(tensor: gs.Tensor, graph: gs.Graph) -> bool:
    return any(map(is_deft_gemm, tensor.inputs)) or any(tensor is t for t in graph.inputs)


def _obstacle(tensor: gs.Tensor, carrying: set[int], reserved: Reserved, graph: gs.Graph) -> str | None:
    """Why `tensor` must stay float32."""
    if tensor in reserved:
        return "the body of another node reads it"
    for producer in tensor.inputs:
        if not is_deft_gemm(producer) and id(producer) not in carrying:
            return f"{producer.op} '{producer.name}' makes it"
    for user in tensor.outputs:
        if is_deft_gemm(user) or (id(user) in carrying and any(t is tensor for t in _data(user))):
            continue
        return f"{user.op} '{user.name}' reads it"
    return None


def _type_of(chain: Chain, asked: str, ranges: dict[str, float], at_border: bool) -> str | None:
    """The type that `chain` becomes, or None where it stays float32."""
    known = [ranges[t.name] for t in chain.tensors if t.name in ranges]
    if len(known) < len(chain.tensors):  # nothing to judge by
        fits = asked == "bfloat16" or at_border
    else:
        fits = all(reach == 0 or SMALLEST[asked] <= reach <= LARGEST[asked] for reach in known)
    if chain.obstacle is not None:
        return None
    if fits:
        return asked
    movable = not at_border and all(node.op in MOVING for node in chain.nodes)
    return "bfloat16" if movable else None


def _retype(chain: Chain, kind: str) -> None:
    dtype, onnx_type = TYPES[kind]
    for tensor in chain.tensors:
        tensor.dtype = dtype
        for producer in tensor.inputs:
            if is_deft_gemm(producer):
                producer.attrs["output_type"] = onnx_type


def _cast_input(graph: gs.Graph, wide: gs.Variable, asked: str) -> None:
    """The input keeps its name; what is read inside is cast from it."""
    dtype, _ = TYPES[asked]
    narrowed = gs.Variable(wide.name, dtype, wide.shape)
    wide.name = unused_name(f"{wide.name}/float32")
    graph.inputs[next(i for i, t in enumerate(graph.inputs) if t is wide)] = narrowed
    graph.nodes.insert(0, _cast(narrowed, wide, TensorProto.FLOAT))


def _cast_output(graph: gs.Graph, wide: gs.Variable, asked: str) -> None:
    dtype, onnx_type = TYPES[asked]
    narrowed = gs.Variable(wide.name, dtype, wide.shape)
    wide.name = unused_name(f"{wide.name}/float32")
    graph.outputs[next(i for i, t in enumerate(graph.outputs) if t is wide)] = narrowed
    graph.nodes.append(_cast(wide, narrowed, onnx_type))


def _cast(source: gs.Variable, result: gs.Variable, onnx_type: int) -> gs.Node:
    return gs.Node("Cast", unused_name(f"{result.name}/cast"), {"to": onnx_type}, [source], [result])
