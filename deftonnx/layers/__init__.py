"""Finds the linear layers of a graph. A new ONNX operator is a module with a `match` function and a row in MATCHERS."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_graphsurgeon as gs

from deftonnx.layers import conv, conv_transpose, deft_gemm, gemm, matmul, refused
from deftonnx.layers.deft_gemm import PackedGemm
from deftonnx.layers.linear import LinearLayer, Refusal, is_standard

__all__ = ["LinearLayer", "PackedGemm", "Refusal", "find_layers", "match"]

MATCHERS: dict[str, Callable[[gs.Node], LinearLayer | Refusal | None]] = {
    "MatMul": matmul.match,
    "Gemm": gemm.match,
    "Conv": conv.match,
    "ConvTranspose": conv_transpose.match,
    "DeftGemm": deft_gemm.match,
    "DeftMlp": deft_gemm.match_mlp,
    **dict.fromkeys(refused.REASONS, refused.match),
}
STANDARD = {"MatMul", "Gemm", "Conv", "ConvTranspose"}
"""Operators that are what their name says only in the standard domain."""
OWN_DOMAIN = "ai.deftonnx"


def match(node: gs.Node) -> LinearLayer | Refusal | None:
    """`node` as a linear layer; a refusal where it has weights but cannot be one; None where it has no weights."""
    if node.op in STANDARD and not is_standard(node):
        return Refusal(node.name, node.op, f"an operator of the domain '{node.domain}'")
    matcher = MATCHERS.get(node.op)
    layer = matcher(node) if matcher else None
    empty = isinstance(layer, LinearLayer) and 0 in (layer.groups, layer.K, layer.N)
    return Refusal(node.name, node.op, "its weight is empty") if empty else layer


def find_layers(graph: gs.Graph) -> list[LinearLayer | Refusal]:
    """Every node of `graph` that multiplies by weights, in order: a layer, or a refusal with its reason.

    Nodes inside the bodies of If, Loop and Scan and inside local functions are refused.
    """
    found: list[LinearLayer | Refusal] = []
    for node in graph.nodes:
        result = match(node)
        if isinstance(result, LinearLayer):
            result.graph = graph
        if result is not None:
            found.append(result)
        for inner in _subgraph_nodes(node):
            found.extend(_refuse(inner, f"inside the body of {node.op} '{node.name}'"))
    for function in graph.functions:
        if function.domain == OWN_DOMAIN:  # what an earlier run wrote, its node found above
            continue
        for inner in function.nodes:
            found.extend(_refuse(inner, f"inside the local function '{function.name}'"))
    return found


def _subgraph_nodes(node: gs.Node) -> Iterator[gs.Node]:
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            for inner in value.nodes:
                yield inner
                yield from _subgraph_nodes(inner)


def _refuse(node: gs.Node, reason: str) -> list[LinearLayer | Refusal]:
    if node.op not in MATCHERS:
        return []
    return [Refusal(node.name, node.op, reason)]
