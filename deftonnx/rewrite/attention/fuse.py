"""Replace attention by ONNX Runtime's MultiHeadAttention between projections of our own choice of columns.

Query, key and value become (batch, length, heads · head size) products of their own, whose features are in the order
that the operator reads: no transpose is left between them and the projection behind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from deftonnx.layers import Refusal
from deftonnx.layers.linear import unused_name
from deftonnx.rewrite.attention import core, heads, output
from deftonnx.rewrite.attention.layout import Shapes
from deftonnx.rewrite.attention.mask import as_bias
from deftonnx.rewrite.reserved import Reserved

CONTRIB = "com.microsoft"
OPERATOR = "MultiHeadAttention"


def fuse_attention(graph: gs.Graph, runs: list[Shapes]) -> tuple[int, list[Refusal]]:
    """Fuse what can be, in place: how many, and why not the others. `runs` are the shapes of all float32 tensors in
    runs of the model that differ in every dimension that may vary; the rewrite holds for all of them."""
    fused, refusals = 0, []
    reserved = Reserved(graph)
    biases: dict[int, gs.Tensor] = {}
    for node in [n for n in graph.nodes if n.op == "Softmax"]:
        outcome = _fuse(graph, node, runs, reserved, biases)
        fused += outcome is None
        if outcome is not None:
            refusals.append(Refusal(node.name, node.op, outcome))
    if fused:
        domains = list(graph.import_domains or [])
        if all(domain.domain != CONTRIB for domain in domains):
            graph.import_domains = [*domains, onnx.helper.make_opsetid(CONTRIB, 1)]
    if fused or refusals:  # a refusal may come late
        graph.cleanup(remove_unused_graph_inputs=False).toposort()
    return fused, refusals


def _fuse(
    graph: gs.Graph, softmax: gs.Node, runs: list[Shapes], reserved: Reserved, biases: dict[int, gs.Tensor]
) -> str | None:
    """Fuse one attention; the reason if it cannot be."""
    found = core.match(softmax)
    if isinstance(found, str):
        return found
    if found.context in reserved or softmax.outputs[0] in reserved:
        return "an output of the graph is inside it"
    parts = [heads.find(found.a, runs, False), heads.find(found.b, runs, True), heads.find(found.v, runs, False)]
    for part in parts:
        if isinstance(part, str):
            return part
    query, key, value = (part for part in parts if isinstance(part, heads.Heads))
    if not query.columns.shape == key.columns.shape == value.columns.shape or value.scale != 1:
        return "its heads differ in size"
    H, D = query.columns.shape
    bias = None
    if found.mask is not None:
        mask = as_bias(graph, found.mask, (found.a, found.b), query.source, H, runs, biases)
        if isinstance(mask, str):
            return mask
        bias = mask
    target = output.find(found.context, (H, D), runs, reserved)
    if target is None and len(runs[0][found.context.name]) != output.AXES:
        return "its heads have no axis of their own"
    inputs = []
    for name, part in (("query", query), ("key", key), ("value", value)):
        tensor = _project(graph, part, f"{softmax.name}/{name}")
        if tensor is None:
            return "its features are not in the order of its heads"
        inputs.append(tensor)
    result = gs.Variable(unused_name(f"{softmax.name}/attention"), np.float32, _shape(inputs[0], H * D))
    if bias is not None:
        inputs += [gs.Variable.empty(), gs.Variable.empty(), bias]
    attributes = {"num_heads": H, "scale": float(found.scale * query.scale * key.scale)}
    node = gs.Node(OPERATOR, unused_name(f"{softmax.name}/attention"), attributes, inputs, [result], domain=CONTRIB)
    graph.nodes.append(node)
    output.connect(graph, result, target, found.context, (H, D))
    return None


def _project(graph: gs.Graph, part: heads.Heads, name: str) -> gs.Tensor | None:
    """(batch, length, H · D) with the columns of `part` in order; None where it is not made by a projection."""
    columns, projection = part.columns.reshape(-1), part.projection
    if projection is None:
        whole = part.source.shape is not None and part.source.shape[-1] == len(columns)
        return part.source if whole and np.array_equal(columns, np.arange(len(columns))) else None
    if projection.x is part.source and np.array_equal(columns, np.arange(projection.weight.shape[1])):
        return projection.y
    shape = _shape(part.source, len(columns))
    weight = np.ascontiguousarray(projection.weight[:, columns])
    bias = None if projection.bias is None else projection.bias[columns]
    result = gs.Variable(unused_name(name), np.float32, shape)
    add_projection(graph, part.source, weight, bias, result, name)
    return result


def add_projection(
    graph: gs.Graph,
    x: gs.Tensor,
    weight: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any] | None,
    result: gs.Variable,
    name: str,
) -> None:
    """MatMul and Add that make `result` from `x`."""
    product = result
    if bias is not None:
        product = gs.Variable(unused_name(f"{name}/product"), np.float32, result.shape)
        constant = gs.Constant(unused_name(f"{name}/bias"), bias)
        graph.nodes.append(gs.Node("Add", f"{name}/bias", {}, [product, constant], [result]))
    constant = gs.Constant(unused_name(f"{name}/weight"), weight)
    graph.nodes.append(gs.Node("MatMul", name, {}, [x, constant], [product]))


def _shape(like: gs.Tensor, features: int) -> list[Any] | None:
    return None if like.shape is None else [*list(like.shape)[:-1], features]
