"""What is in a model: every node that multiplies by weights, and whether it can be reduced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from deftonnx import model_file
from deftonnx.errors import UnsupportedError
from deftonnx.layers import LinearLayer, PackedGemm, Refusal, find_layers
from deftonnx.rewrite.normalise import import_model, normalise
from deftonnx.selection import select
from deftonnx.settings import Settings

SCHEMA = "deftonnx-inspect"
SCHEMA_VERSION = 1


@dataclass
class LayerInfo:
    """One node. `m_rule` is the rule for M, the rows of X; `share` is of the multiply-adds of one sample, dimensions
    without a fixed length counting as 1; `bytes` are those of weights and biases, `format` is that of a packed weight;
    `reason` is None where the layer is eligible."""

    name: str
    op: str
    m_rule: str | None
    K: int | None
    N: int | None
    groups: int | None
    parameters: int | None
    macs: int | None
    share: float | None
    reason: str | None
    format: str | None = None
    bytes: int | None = None


def inspect(model: str | Path | onnx.ModelProto, **options: Any) -> list[LayerInfo]:
    """Every linear layer of `model`, as `optimize` with these options would see it, and what it would leave alone."""
    origin = "the model" if isinstance(model, onnx.ModelProto) else f"'{model}'"
    if isinstance(model, onnx.ModelProto):
        model_file.check(model, origin)
    graph = import_model(model if isinstance(model, onnx.ModelProto) else model_file.load(model))
    if _is_cyclic(graph):  # optimize asks ONNX Runtime first
        raise UnsupportedError(f"the graph of {origin} has a cycle")
    normalise(graph)
    found = find_layers(graph)
    layers = [f for f in found if isinstance(f, LinearLayer)]
    _, refusals = select(graph, layers, layers, Settings(**options).resolve(has_data=True), None, None)
    reasons = {refusal.name: refusal.reason for refusal in refusals}
    total = sum(layer.macs() for layer in layers) + sum(f.macs for f in found if isinstance(f, PackedGemm))
    return [
        _describe(f, total, reasons.get(f.name)) if isinstance(f, LinearLayer) else _describe_refused(f, total)
        for f in found
    ]


def _is_cyclic(graph: gs.Graph) -> bool:
    waiting = {id(node): sum(len(t.inputs) for t in node.inputs) for node in graph.nodes}
    ready = [node for node in graph.nodes if waiting[id(node)] == 0]
    for node in ready:  # which grows
        for user in (user for t in node.outputs for user in t.outputs if id(user) in waiting):
            waiting[id(user)] -= 1
            if waiting[id(user)] == 0:
                ready.append(user)
    return len(ready) < len(graph.nodes)


def _describe_refused(node: Refusal, total: int) -> LayerInfo:
    if not isinstance(node, PackedGemm):
        return LayerInfo(node.name, node.op, None, None, None, None, None, None, None, node.reason)
    share = node.macs / total if total else None
    sizes = (node.m_rule, node.K, node.N, 1, node.parameters, node.macs, share)
    return LayerInfo(node.name, node.op, *sizes, node.reason, node.format, node.bytes)


def _describe(layer: LinearLayer, total: int, reason: str | None) -> LayerInfo:
    macs = layer.macs()
    return LayerInfo(
        layer.name,
        layer.op,
        layer.rows_per_sample()[0],
        layer.K,
        layer.N,
        layer.groups,
        layer.parameters(),
        macs,
        macs / total if total else None,
        reason,
        bytes=layer.constant_bytes(),
    )
