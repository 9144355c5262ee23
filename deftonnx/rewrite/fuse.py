"""Fold what follows a DeftGemm or DeftConv into it: the Add of a bias, the Add of a residual, an activation.

The operator computes activation(X·W · scale + bias + residual), so a bias is folded while there is no activation, a
residual while there is neither another residual nor an activation, and an activation last. Nothing is folded whose
value something else reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.formats.conv_function import is_conv
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.layers import Refusal
from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.activations import Activation, function_of, recognise
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.reserved import Reserved
from deftonnx.rewrite.scalar_function import Polynomial, ScalarFunctions

Array = np.ndarray[Any, Any]
TOLERANCES = {np.dtype(np.float16): 1e-3}
"""Of the constants in an activation, relative: exporters round them to the activations' type."""
DEFAULT_TOLERANCE = 1e-5
MOST_NODES = 16
"""Of an activation; the longest that exporters write has ten."""
_BIAS, _KEPT, _RESIDUAL = 3, 4, 5


@dataclass(frozen=True)
class BiasAdd:
    """An Add of `values` (N,)."""

    add: gs.Node
    values: Array


@dataclass(frozen=True)
class ResidualAdd:
    """An Add of the tensor `residual`, shaped like the product."""

    add: gs.Node
    residual: gs.Tensor


@dataclass(frozen=True)
class ActivationNodes:
    """The elementwise nodes between the product and `result`, which are `activation`."""

    nodes: list[gs.Node]
    result: gs.Tensor
    activation: Activation


Epilogue = BiasAdd | ResidualAdd | ActivationNodes


def fuse(graph: gs.Graph) -> bool:
    """Fold epilogues into all DeftGemm and DeftConv nodes of `graph`, whose shapes are known where they can be."""
    changed = False
    reserved = Reserved(graph)
    for node in list(graph.nodes):
        if not is_deft_gemm(node) and not is_conv(node.domain, node.op):
            continue
        while not isinstance(found := match(node, reserved), Refusal):
            _rewrite(node, found)
            changed = True
    if changed:
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return changed


def is_deft_gemm(node: gs.Node) -> bool:
    """True for our operator."""
    return is_gemm(node.domain, node.op)


def match(node: gs.Node, reserved: Reserved) -> Epilogue | Refusal:
    """What can be folded into the DeftGemm or DeftConv `node` next, or why nothing can."""
    y = node.outputs[0]
    if node.attrs["activation"] != "none":
        return _refusal(node, "it has an activation, which comes last")
    if y in reserved:
        return _refusal(node, "its output is an output of the graph, or read in the body of another node")
    if not y.outputs:
        return _refusal(node, "nothing reads its output")
    alone = all(user is y.outputs[0] for user in y.outputs)
    if alone and y.outputs[0].op == "Add" and is_standard(y.outputs[0]):
        return _match_add(node, y.outputs[0])
    return _match_activation(node, reserved)


def _refusal(node: gs.Node, reason: str) -> Refusal:
    return Refusal(node.name, node.op, reason)


def _match_add(node: gs.Node, add: gs.Node) -> Epilogue | Refusal:
    y = node.outputs[0]
    other = add.inputs[1] if add.inputs[0] is y else add.inputs[0]
    if isinstance(other, gs.Constant):
        values = _per_output(other, int(node.attrs["N"]), 1 if y.shape is None else len(y.shape))
        if values is None:
            return _refusal(node, "the constant that is added has not one value for each output feature")
        return BiasAdd(add, values)
    if other is y:
        return _refusal(node, "its output is added to itself")
    if len(node.inputs) > _RESIDUAL:
        return _refusal(node, "it has a residual already")
    known = y.shape is not None and other.shape is not None and None not in y.shape
    if not known or list(y.shape) != list(other.shape):
        return _refusal(node, "what is added is not known to have the shape of its output")
    return ResidualAdd(add, other)


def _per_output(constant: gs.Constant, N: int, rank: int) -> Array | None:
    """A constant that is added to (..., N) as N float32 values."""
    shape = tuple(constant.shape)
    if len(shape) > rank or any(d != 1 for d in shape[:-1]) or (shape and shape[-1] not in (1, N)):
        return None
    return np.broadcast_to(constant.values.reshape(-1), (N,)).astype(np.float32)


def _match_activation(node: gs.Node, reserved: Reserved) -> Epilogue | Refusal:
    """Grow the elementwise nodes behind the product; the last place where they are an activation is taken."""
    y = node.outputs[0]
    dtype = None if y.dtype is None else np.dtype(y.dtype)
    functions = ScalarFunctions(TOLERANCES.get(dtype, DEFAULT_TOLERANCE) if dtype else DEFAULT_TOLERANCE)
    made: dict[int, Polynomial] = {id(y): functions.variable}
    tensors, nodes = [y], list[gs.Node]()
    best: ActivationNodes | None = None
    while len(nodes) < MOST_NODES and (found := _next(tensors, nodes, made, functions)) is not None:
        user, function = found
        result = user.outputs[0]
        nodes.append(user)
        if _closed(tensors, nodes, reserved) and (activation := recognise(functions, function)) is not None:
            best = ActivationNodes(list(nodes), result, activation)
        made[id(result)] = function
        tensors.append(result)
    return best or _refusal(node, "what follows is none of its activations, or is read elsewhere")


def _next(
    tensors: list[gs.Tensor], nodes: list[gs.Node], made: dict[int, Polynomial], functions: ScalarFunctions
) -> tuple[gs.Node, Polynomial] | None:
    """A node that makes another function of the variable from the `tensors` that are `made` so far."""
    seen = set(map(id, nodes))
    rank = 1 if tensors[0].shape is None else len(tensors[0].shape)
    for user in (user for tensor in tensors for user in tensor.outputs):
        if id(user) in seen or len(user.outputs) != 1:
            continue
        inputs = [made.get(id(t)) or _constant(t, rank) for t in user.inputs]
        if any(f is None and t.name for f, t in zip(inputs, user.inputs, strict=True)):
            continue
        function = function_of(user, functions, inputs)
        if function is not None:
            return user, function
    return None


def _constant(tensor: gs.Tensor, rank: int) -> Polynomial | None:
    """The constant function that a tensor of one number is, if it is one and leaves the rank alone."""
    if not isinstance(tensor, gs.Constant) or np.prod(tensor.shape) != 1 or len(tensor.shape) > rank:
        return None
    return {(): float(tensor.values.reshape(()))}


def _closed(tensors: list[gs.Tensor], nodes: list[gs.Node], reserved: Reserved) -> bool:
    """True where only `nodes` read `tensors`."""
    own = set(map(id, nodes))
    return all(t not in reserved and all(id(user) in own for user in t.outputs) for t in tensors)


def _rewrite(node: gs.Node, epilogue: Epilogue) -> None:
    if isinstance(epilogue, ActivationNodes):
        activation = epilogue.activation
        node.attrs.update(activation=activation.name, alpha=activation.alpha, beta=activation.beta)
        _take_over(node, epilogue.nodes, epilogue.result)
        return
    if isinstance(epilogue, BiasAdd):
        bias = node.inputs[_BIAS].values + epilogue.values
        node.inputs[_BIAS] = gs.Constant(unused_name(f"{node.name}/gemm_bias"), bias)
    else:
        if len(node.inputs) == _KEPT:
            node.inputs.append(gs.Constant(unused_name(f"{node.name}/kept_blocks"), np.zeros(0, np.int32)))
        node.inputs.append(epilogue.residual)
    _take_over(node, [epilogue.add], epilogue.add.outputs[0])


def _take_over(node: gs.Node, nodes: list[gs.Node], result: gs.Tensor) -> None:
    """Let `node` make `result` instead of the `nodes` that did."""
    if result.dtype is None:
        result.dtype = node.outputs[0].dtype
    for other in nodes:
        other.inputs.clear()
        other.outputs.clear()
    node.outputs = [result]
