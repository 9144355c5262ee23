"""A model that computes in float16 becomes one in float32, from which regions in 16 bits are made anew.

All recognition (attention, normalisation, convolutions that take in what follows) is of float32 graphs. Weights keep
their values, so that packing them in 16 bits again loses nothing; inputs and outputs keep their types, by Casts that
join those of the regions' edges.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from deftonnx.layers.linear import is_standard, stored, stored_as, unused_name
from deftonnx.model import Array
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.regions.kernels import CONTRIB, CONTRIBUTED

_NUMBERS = np.array([np.sqrt(2), np.sqrt(0.5), np.sqrt(2 / np.pi), 0.044715], np.float32)
"""Those of GELU, which float16 does not hold: a constant that is one of them to rounding stands for it."""
_VALUES = ("Constant", "ConstantOfShape")
"""Operators whose type is that of their attribute `value`."""


def widen(graph: gs.Graph) -> bool:
    """Make float32 of all float16 inside `graph`, in place; False, and nothing is done, where there is none, or where
    that cannot be."""
    tensors = [t for t in graph.tensors().values() if t.dtype == np.float16]
    if not tensors or not all(map(_can_widen, graph.nodes)) or any(True for _ in graph.subgraphs()):
        return False
    for node in graph.nodes:
        if node.op == "Cast" and node.attrs["to"] == TensorProto.FLOAT16:
            node.attrs["to"] = TensorProto.FLOAT
        value = node.attrs.get("value")
        if node.op in _VALUES and isinstance(value, gs.Constant) and value.dtype == np.float16:
            node.attrs["value"] = gs.Constant(value.name, _widened(stored(value)))
    ends = {id(t) for t in (*graph.inputs, *graph.outputs)}
    for tensor in tensors:
        if id(tensor) in ends:
            continue
        if isinstance(tensor, gs.Constant):
            tensor.values = _widened(stored(tensor))
        else:
            tensor.dtype = np.float32
    for tensor in graph.inputs:
        if tensor.dtype == np.float16:
            wide = _wide(tensor)
            _read_instead(tensor, wide)
            _cast(graph, tensor, wide, TensorProto.FLOAT)
    for tensor in graph.outputs:
        if tensor.dtype != np.float16:
            continue
        if isinstance(tensor, gs.Constant):
            _read_instead(tensor, stored_as(_wide(tensor).name, _widened(stored(tensor))))
        elif tensor.inputs:
            wide = _wide(tensor)
            _read_instead(tensor, wide)
            maker = tensor.inputs[0]
            maker.outputs = [wide if t is tensor else t for t in maker.outputs]
            _cast(graph, wide, tensor, TensorProto.FLOAT16)
    sort_nodes(graph)
    return True


def _can_widen(node: gs.Node) -> bool:
    """True for operators that have a float32 form and whose types follow from their inputs."""
    if node.domain == CONTRIB:
        return node.op in CONTRIBUTED
    return is_standard(node) and node.attrs.get("dtype") != TensorProto.FLOAT16


def _widened(values: Array) -> Array:
    if values.size == 1:
        for number in _NUMBERS[_NUMBERS.astype(np.float16) == values.reshape(())]:
            return np.full(values.shape, number)
    return values.astype(np.float32)


def _wide(tensor: gs.Tensor) -> gs.Variable:
    return gs.Variable(unused_name(f"{tensor.name}/float32"), np.float32, tensor.shape)


def _read_instead(tensor: gs.Tensor, wide: gs.Tensor) -> None:
    for user in list(tensor.outputs):
        user.inputs = [wide if t is tensor else t for t in user.inputs]


def _cast(graph: gs.Graph, source: gs.Tensor, result: gs.Tensor, kind: int) -> None:
    graph.nodes.append(gs.Node("Cast", unused_name(f"{result.name}/cast"), {"to": kind}, [source], [result]))
