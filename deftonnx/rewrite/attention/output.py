"""What becomes of the context of an attention: heads joined, and at times batch and sequence exchanged by the exporter.

(batch, heads, length, head size) is followed through layout nodes to (batch, length, heads · head size), the order of
MultiHeadAttention. Where the exporter keeps the sequence first (torch.nn.MultiheadAttention), the projection behind is
moved in front of the transpose that undoes this: rows of a product may be permuted after it as well as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import unused_name
from deftonnx.rewrite.attention.heads import Projection, projection_of
from deftonnx.rewrite.attention.layout import Chain, Shapes, forwards
from deftonnx.rewrite.reserved import Reserved

Array = np.ndarray[Any, Any]
AXES = 4
"""Of a context that `connect` can make where there is no target: (batch, heads, length, head size)."""


@dataclass
class Target:
    """`tensor` is the context with its heads joined, or that times the weight of `projection`."""

    tensor: gs.Tensor
    projection: Projection | None = None


def find(context: gs.Tensor, size: tuple[int, int], runs: list[Shapes], reserved: Reserved) -> Target | None:
    """Where the attention's result can be used as it is; None where only `context` itself can be made from it."""
    chains = []
    for chain in [Chain(context, context, []), *forwards(context)]:
        if chain.start in reserved:
            break
        chains.append(chain)
        if all(_is_joined(chain, size, shapes) for shapes in runs):
            return Target(chain.end)
        if chain.end in reserved:
            break
    for chain in reversed(chains):
        if (projection := _projection_behind(chain.end, reserved)) is None:
            continue
        for behind in forwards(projection.y):
            if all(_is_restored(chain, projection, behind, size, shapes) for shapes in runs):
                return Target(behind.end, projection)
            if behind.end in reserved:
                break
    return None


def connect(graph: gs.Graph, result: gs.Variable, target: Target | None, context: gs.Tensor, size: Any) -> None:
    """Let what follows read `result`, the output of MultiHeadAttention."""
    if target is None:
        H, D = size
        shape = gs.Constant(unused_name(f"{context.name}/heads"), np.array([0, 0, H, D], np.int64))
        apart = gs.Variable(unused_name(f"{context.name}/apart"), np.float32)
        context.inputs.clear()
        graph.nodes.append(gs.Node("Reshape", unused_name(f"{context.name}/reshape"), {}, [result, shape], [apart]))
        attributes = {"perm": [0, 2, 1, 3]}
        graph.nodes.append(
            gs.Node("Transpose", unused_name(f"{context.name}/transpose"), attributes, [apart], [context])
        )
        return
    tensor, projection = target.tensor, target.projection
    tensor.inputs.clear()
    if projection is None:
        _replace(graph, tensor, result)
        return
    name = unused_name(f"{tensor.name}/projection")
    product = tensor
    if projection.bias is not None:
        product = gs.Variable(unused_name(f"{name}/product"), np.float32, tensor.shape)
        bias = gs.Constant(unused_name(f"{name}/bias"), projection.bias)
        graph.nodes.append(gs.Node("Add", f"{name}/bias", {}, [product, bias], [tensor]))
    weight = gs.Constant(unused_name(f"{name}/weight"), np.ascontiguousarray(projection.weight))
    graph.nodes.append(gs.Node("MatMul", name, {}, [result, weight], [product]))


def _replace(graph: gs.Graph, tensor: gs.Tensor, result: gs.Variable) -> None:
    """Let the node that makes `result` make `tensor`, which may be an output of the graph, instead."""
    tensor.dtype = np.dtype(np.float32)
    maker = result.inputs[0]
    if tensor.shape is None:
        tensor.shape = result.shape
    maker.outputs = [tensor]


def _joined(shape: tuple[int, ...], size: tuple[int, int]) -> Array | None:
    """Positions in the context (batch · H, length, D) of (batch, length, H · D)."""
    H, D = size
    length = shape[-2]
    if shape[-1] != D or int(np.prod(shape)) % (H * D * length):
        return None
    positions = np.arange(int(np.prod(shape))).reshape(-1, H, length, D)
    return positions.transpose(0, 2, 1, 3).reshape(-1, length, H * D)


def _is_joined(chain: Chain, size: tuple[int, int], shapes: Shapes) -> bool:
    wanted, positions = _joined(shapes[chain.start.name], size), chain.positions(shapes)
    return wanted is not None and positions is not None and np.array_equal(wanted, positions)


def _projection_behind(tensor: gs.Tensor, reserved: Reserved) -> Projection | None:
    """The projection that alone reads `tensor`."""
    if len(tensor.outputs) != 1 or tensor in reserved:
        return None
    y = tensor.outputs[0].outputs[0]
    if tensor.outputs[0].op == "MatMul" and len(y.outputs) == 1 and y.outputs[0].op == "Add":
        found = projection_of(y.outputs[0].outputs[0])
        if found is not None and found.x is tensor:
            return found
    found = projection_of(y)
    return found if found is not None and found.x is tensor else None


def _is_restored(chain: Chain, projection: Projection, behind: Chain, size: tuple[int, int], shapes: Shapes) -> bool:
    """True where rows go through `chain`, `projection` and `behind` to their places in (batch, length, outputs)."""
    wanted = _joined(shapes[chain.start.name], size)
    before, after = chain.positions(shapes), behind.positions(shapes)
    K, N = projection.weight.shape
    if wanted is None or before is None or after is None or before.shape[-1] != K or after.shape[-1] != N:
        return False
    if after.shape[:-1] != wanted.shape[:-1] or wanted.shape[-1] != K:
        return False
    rows, columns = np.divmod(after.reshape(-1, N), N)
    whole = (rows == rows[:, :1]).all() and (columns == np.arange(N)).all()
    return bool(whole) and np.array_equal(before.reshape(-1, K)[rows[:, 0]], wanted.reshape(-1, K))
