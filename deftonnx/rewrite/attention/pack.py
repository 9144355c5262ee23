"""Queries, keys and values of one MultiHeadAttention by one product, and the attention by DeftAttention.

ONNX Runtime's operator takes the three packed, but on the GPU takes them apart again by a kernel of its own, and a mask
keeps it from its fastest kernels. Ours reads them where they are, which pays while sequences are short: those that are
known to be long are left. To be called when types are settled: the rewrite is for attention in 16 bits between DeftGemm
nodes.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from deftonnx.formats.attention_function import HEAD_SIZE_STEP, LARGEST_HEAD, OPERATOR, attention_attributes
from deftonnx.formats.operator_function import DOMAIN
from deftonnx.layers.linear import stored, stored_as, unused_name
from deftonnx.rewrite.attention.fuse import CONTRIB
from deftonnx.rewrite.fuse import is_deft_gemm
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.output_types import has_residual

_WEIGHT, _SCALE, _BIAS, _KEPT = 1, 2, 3, 4
_ATTENTION_BIAS = 5
_LONGEST = 256
"""Rows of a sequence; beyond, ONNX Runtime's own kernels gain more than one product does."""
_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def pack_attention(graph: gs.Graph) -> int:
    """Rewrite in place what can be: how many attentions."""
    found = [(node, gemms) for node in graph.nodes if (gemms := _projections(graph, node)) is not None]
    joined: dict[tuple[int, ...], gs.Constant] = {}  # by what they are made of: layers may share weights
    for node, gemms in found:
        _rewrite(graph, node, gemms, joined)
    if found:
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return len(found)


def _projections(graph: gs.Graph, node: gs.Node) -> list[gs.Node] | None:
    """The three products that only make the query, key and value of the attention `node`, from one tensor."""
    if node.op != "MultiHeadAttention" or node.domain != CONTRIB or len(node.inputs) <= 2:
        return None
    if not node.attrs.get("scale") or node.attrs.get("unidirectional"):
        return None
    if any(t.name for i, t in enumerate(node.inputs) if i > 2 and i != _ATTENTION_BIAS) or len(node.outputs) > 1:
        return None
    shape = node.inputs[0].shape
    if shape is not None and len(shape) == 3 and isinstance(shape[1], int) and shape[1] > _LONGEST:
        return None
    gemms = []
    for tensor in node.inputs[:3]:
        if len(tensor.inputs) != 1 or not is_deft_gemm(tensor.inputs[0]) or len(tensor.outputs) != 1:
            return None
        if any(tensor is output for output in graph.outputs):
            return None
        gemms.append(tensor.inputs[0])
    first = gemms[0]
    head_size, rest = divmod(first.attrs["N"], node.attrs["num_heads"])
    if rest or head_size % HEAD_SIZE_STEP or head_size > LARGEST_HEAD or first.attrs["output_type"] not in _TYPES:
        return None
    alike = all(_alike(first, other) for other in gemms[1:])
    return gemms if alike and not any(has_residual(gemm) for gemm in gemms) else None


def _alike(a: gs.Node, b: gs.Node) -> bool:
    """True where two products can be one: of the same tensor, the same features and with the same epilogue."""
    if a.inputs[0] is not b.inputs[0] or a.attrs != b.attrs or len(a.inputs) != len(b.inputs):
        return False
    return len(a.inputs) <= _KEPT or np.array_equal(a.inputs[_KEPT].values, b.inputs[_KEPT].values)


def _rewrite(graph: gs.Graph, node: gs.Node, gemms: list[gs.Node], joined: dict[tuple[int, ...], gs.Constant]) -> None:
    first, heads = gemms[0], node.attrs["num_heads"]
    head_size = first.attrs["N"] // heads
    constants = []
    for i in (_WEIGHT, _SCALE, _BIAS):
        parts = [gemm.inputs[i] for gemm in gemms]
        key = tuple(map(id, parts))
        if key not in joined:
            joined[key] = _joined(parts, node.name)
        constants.append(joined[key])
    inputs = [first.inputs[0], *constants, *first.inputs[_KEPT:]]
    packed = gs.Variable(unused_name(f"{node.name}/packed"), node.outputs[0].dtype)
    attributes = {**first.attrs, "N": 3 * first.attrs["N"]}
    product = gs.Node(first.op, unused_name(f"{node.name}/qkv"), attributes, inputs, [packed], domain=first.domain)
    attributes = attention_attributes(heads, head_size, node.attrs["scale"], first.attrs["output_type"])
    bias = node.inputs[_ATTENTION_BIAS : _ATTENTION_BIAS + 1]
    inputs = [packed, *(t for t in bias if t.name)]
    attention = gs.Node(OPERATOR, unused_name(node.name), attributes, inputs, list(node.outputs), domain=DOMAIN)
    for old in (node, *gemms):
        old.inputs.clear()
        old.outputs.clear()
    graph.nodes.extend([product, attention])


def _joined(constants: list[gs.Constant], name: str) -> gs.Constant:
    """The constants one after another along their first axis."""
    return stored_as(unused_name(f"{name}/qkv/{constants[0].name}"), np.concatenate([stored(c) for c in constants]))
