"""Replace attention by ONNX Runtime's MultiHeadAttention between projections of our own choice of columns.

Query, key and value become (batch, length, heads · head size) products of their own, whose features are in the order
that the operator reads: no transpose is left between them and the projection behind. With rotary embeddings, or keys
and values that heads share, it is DeftAttention behind one product of all three.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from deftonnx.formats.attention_function import HEAD_SIZE_STEP, LARGEST_HEAD, ROTARY_STEP, attention_attributes
from deftonnx.formats.attention_function import OPERATOR as DEFT_ATTENTION
from deftonnx.formats.operator_function import DOMAIN, OLDEST_OPSET
from deftonnx.layers import Refusal
from deftonnx.layers.linear import unused_name
from deftonnx.rewrite.attention import core, heads, output, rotary
from deftonnx.rewrite.attention.layout import Run, backwards
from deftonnx.rewrite.attention.mask import as_bias, without_causal
from deftonnx.rewrite.attention.mask import watched as watched_of
from deftonnx.rewrite.attention.windows import of_windows
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.reserved import Reserved

CONTRIB = "com.microsoft"
OPERATOR = "MultiHeadAttention"
_AXES_JOINED = 3
"""Of (batch, length, features)."""


@dataclass
class _Found:
    """What attentions of one graph share: the biases and the tables of embeddings that were made, by their sources."""

    graph: gs.Graph
    runs: list[Run]
    reserved: Reserved
    portable: bool
    biases: dict[Any, gs.Tensor] = field(default_factory=dict)
    tables: dict[tuple[object, ...], gs.Tensor] = field(default_factory=dict)


def watched(graph: gs.Graph) -> list[str]:
    """The tensors whose values `fuse_attention` wants to see."""
    names: dict[str, None] = {}
    for node in graph.nodes:
        found = core.match(node) if node.op == "Softmax" else ""
        if isinstance(found, str):
            continue
        turned = [rotary.match(backwards(t, scaling=True).start) for t in (found.a, found.b)]
        tensors = [t for part in turned if part is not None for t in (part.cosines, part.sines)]
        tensors += watched_of(found.mask) if found.mask is not None else []
        names |= dict.fromkeys(t.name for t in tensors if isinstance(t, gs.Variable))
    return list(names)


def fuse_attention(
    graph: gs.Graph, runs: list[Run], portable: bool = False, among: Container[str] | None = None
) -> tuple[list[str], list[Refusal]]:
    """Fuse what can be, in place: the names of the Softmax nodes that went, and why the others did not.

    `runs` are the shapes of all float32 tensors, and the values of those that are `watched`, in runs of the model that
    differ in every dimension that may vary; the rewrite holds for all of them. `portable` forbids DeftAttention.
    `among`: the names of those to look at, or all.
    """
    fused: list[str] = []
    refusals: list[Refusal] = []
    known = _Found(graph, runs, Reserved(graph), portable)
    for node in [n for n in graph.nodes if n.op == "Softmax" and (among is None or n.name in among)]:
        outcome = _fuse(node, known)
        if outcome is None:
            fused.append(node.name)
        else:
            refusals.append(Refusal(node.name, node.op, outcome))
    if fused:
        for name in (CONTRIB, DOMAIN):
            domains = list(graph.import_domains or [])
            if any(node.domain == name for node in graph.nodes) and all(d.domain != name for d in domains):
                graph.import_domains = [*domains, onnx.helper.make_opsetid(name, 1)]
    if fused or refusals:  # a refusal may come late
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return fused, refusals


def _fuse(softmax: gs.Node, known: _Found) -> str | None:
    """Fuse one attention; the reason if it cannot be."""
    graph, runs, reserved = known.graph, known.runs, known.reserved
    shapes = [run.shapes for run in runs]
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
    key, value = (_for_all(part, len(query.columns)) for part in (key, value))
    if not query.columns.shape == key.columns.shape == value.columns.shape or value.scale != 1:
        return "its heads differ in size"
    H, D = query.columns.shape
    if query.rotary is not None or key.rotary is not None or _sharing(key, value) > 1:
        if found.windows is not None:
            return "its windows have masks of their own"
        return _fuse_shared(softmax, found, (query, key, value), known)
    if value.rotary is not None:
        return "its values have rotary embeddings"
    bias = None
    if found.windows is not None:
        mask = of_windows(graph, found, query.source, H, shapes, known.biases)
        if isinstance(mask, str):
            return mask
        bias = mask
    elif found.mask is not None:
        mask = as_bias(graph, found.mask, (found.a, found.b), query.source, H, shapes, known.biases)
        if isinstance(mask, str):
            return mask
        bias = mask
    target = output.find(found.context, (H, D), shapes, reserved)
    if target is None and len(shapes[0][found.context.name]) != output.AXES:
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


def _for_all(part: heads.Heads, count: int) -> heads.Heads:
    """`part` with a single head repeated for `count` queries, as the product of matrices does."""
    return replace(part, columns=part.columns.repeat(count, axis=0)) if len(part.columns) == 1 else part


def _sharing(key: heads.Heads, value: heads.Heads) -> int:
    """How many neighbours among the heads share one key and value."""
    H = len(key.columns)
    for group in sorted((g for g in range(2, H + 1) if H % g == 0), reverse=True):
        if all(np.array_equal(x.columns, x.columns[::group].repeat(group, axis=0)) for x in (key, value)):
            return group
    return 1


def _fuse_shared(
    softmax: gs.Node, found: core.Core, parts: tuple[heads.Heads, heads.Heads, heads.Heads], known: _Found
) -> str | None:
    """Make it one product of queries, keys and values, and a DeftAttention."""
    graph, shapes = known.graph, [run.shapes for run in known.runs]
    query, key, value = parts
    H, D = query.columns.shape
    group = _sharing(key, value)
    turned = query.rotary
    if value.rotary is not None or (turned is None) != (key.rotary is None):
        return "its queries, keys and values do not have the same rotary embeddings"
    if turned is not None and key.rotary is not None and turned.angles() != key.rotary.angles():
        return "its queries and keys have other rotary embeddings"
    joint = all(part.projection is not None and part.source is query.source for part in parts)
    if any(len({s[part.source.name][:2] for part in parts}) > 1 for s in shapes):
        return "its queries, keys and values are not those of one sequence"
    if known.portable:
        return "--portable forbids rotary embeddings and shared keys in one operator"
    if graph.opset < OLDEST_OPSET:
        return f"rotary embeddings and shared keys need opset {OLDEST_OPSET}, the model has {graph.opset}"
    if D % (HEAD_SIZE_STEP if turned is None else ROTARY_STEP) or D > LARGEST_HEAD:
        return f"no kernel is made for heads of {D} features"
    bias: gs.Tensor | None = None
    causal = False
    if found.mask is not None:
        mask = as_bias(graph, found.mask, (found.a, found.b), query.source, H, shapes, known.biases, all_rows=False)
        if isinstance(mask, str):
            return mask
        bias, causal = without_causal(graph, found.mask, known.runs, known.biases)
        bias = mask if bias is found.mask else bias
    target = output.find(found.context, (H, D), shapes, known.reserved)
    if target is None and len(shapes[0][found.context.name]) != output.AXES:
        return "its heads have no axis of their own"
    features = D if turned is None else turned.turned(known.runs[0])
    order = rotary.order(features, D)
    wanted = (query.columns[:, order], key.columns[::group, order], value.columns[::group])
    packed = [replace(part, columns=columns) for part, columns in zip(parts, wanted, strict=True)]
    result = (_project_all if joint else _project_each)(graph, packed, f"{softmax.name}/qkv")
    if result is None:
        return "its features are not in the order of its heads"
    inputs = [result]
    if bias is not None or turned is not None:
        inputs.append(gs.Variable.empty() if bias is None else bias)
    if turned is not None:
        angles = (*turned.angles(), D)
        if angles not in known.tables:
            known.tables[angles] = rotary.table(graph, turned, features, D, f"{softmax.name}/rotary")
        inputs.append(known.tables[angles])
    result = gs.Variable(unused_name(f"{softmax.name}/attention"), np.float32, _shape(inputs[0], H * D))
    scale = found.scale * query.scale * key.scale
    attributes = attention_attributes(H, D, scale, num_kv_heads=H // group, causal=causal)
    name = unused_name(f"{softmax.name}/attention")
    graph.nodes.append(gs.Node(DEFT_ATTENTION, name, attributes, inputs, [result], domain=DOMAIN))
    output.connect(graph, result, target, found.context, (H, D))
    return None


def _project_each(graph: gs.Graph, parts: list[heads.Heads], name: str) -> gs.Variable | None:
    """(batch, length, features of queries, keys and values), each made on its own, as norms of queries and keys need;
    None where one cannot be."""
    inputs = [_project(graph, part, f"{name}/{i}") for i, part in enumerate(parts)]
    if any(tensor is None for tensor in inputs):
        return None
    result = gs.Variable(unused_name(name), np.float32, _shape(parts[-1].source, sum(p.columns.size for p in parts)))
    graph.nodes.append(gs.Node("Concat", result.name, {"axis": -1}, inputs, [result]))
    return result


def _project_all(graph: gs.Graph, parts: list[heads.Heads], name: str) -> gs.Variable:
    """(batch, length, features of queries, keys and values) by one product of one tensor."""
    weights, biases = [], []
    for part in parts:
        projection, columns = part.projection, part.columns.reshape(-1)
        assert projection is not None
        weights.append(projection.weight[:, columns])
        biases.append(np.zeros(len(columns), np.float32) if projection.bias is None else projection.bias[columns])
    weight, bias = np.concatenate(weights, axis=1), np.concatenate(biases)
    has_bias = any(part.projection is not None and part.projection.bias is not None for part in parts)
    result = gs.Variable(unused_name(name), np.float32, _shape(parts[0].source, len(bias)))
    add_projection(graph, parts[0].source, weight, bias if has_bias else None, result, name)
    return result


def _project(graph: gs.Graph, part: heads.Heads, name: str) -> gs.Tensor | None:
    """(batch, length, H · D) with the columns of `part` in order; None where it is not made by a projection, and not
    that already."""
    columns, projection = part.columns.reshape(-1), part.projection
    if projection is None:
        shape = part.source.shape or []
        whole = all(isinstance(size, int) for size in shape[2:]) and np.prod(shape[2:]) == len(columns)
        if not whole or not np.array_equal(columns, np.arange(len(columns))):
            return None
        return part.source if len(shape) == _AXES_JOINED else _joined(graph, part.source, name)
    if projection.x is part.source and np.array_equal(columns, np.arange(projection.weight.shape[1])):
        return projection.y
    shape = _shape(part.source, len(columns))
    weight = np.ascontiguousarray(projection.weight[:, columns])
    bias = None if projection.bias is None else projection.bias[columns]
    result = gs.Variable(unused_name(name), np.float32, shape)
    add_projection(graph, part.source, weight, bias, result, name)
    return result


def _joined(graph: gs.Graph, source: gs.Tensor, name: str) -> gs.Variable:
    """`source` (batch, length, …) with all axes behind the length as one."""
    result = gs.Variable(unused_name(name), np.float32, _shape(source, int(np.prod(source.shape[2:]))))
    target = gs.Constant(f"{result.name}/target", np.array([0, 0, -1]))
    graph.nodes.append(gs.Node("Reshape", result.name, {}, [source, target], [result]))
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
    return None if like.shape is None else [*list(like.shape)[:2], features]
