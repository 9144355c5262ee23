"""A Gemm between two Reshapes that join rows and part them again is a MatMul: what is around it can then be fused.

Exporters write torch's addmm (GPT-2's Conv1D, and Linear by some) as Reshape to (rows, K), Gemm, Reshape to (…, N).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.fold_reshape import MADE_UP
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.reserved import Reserved


def keep_rows_apart(graph: gs.Graph) -> bool:
    """Rewrite in place where shapes are known; True if anything changed."""
    changed = False
    reserved = Reserved(graph)
    for node in list(graph.nodes):
        if (ends := _ends(node, reserved)) is None:
            continue
        x, y = ends
        weight = node.inputs[1]
        if node.attrs.get("transB", 0):
            weight = gs.Constant(unused_name(f"{weight.name}/columns_{node.name}"), weight.values.T.copy())
        bias = node.inputs[2:]
        y.inputs.clear()
        product = gs.Variable(unused_name(f"{y.name}/product"), y.dtype, y.shape) if bias else y
        graph.nodes.append(gs.Node("MatMul", node.name, {}, [x, weight], [product]))
        if bias:
            graph.nodes.append(gs.Node("Add", unused_name(f"{node.name}/bias"), {}, [product, bias[0]], [y]))
        node.inputs.clear()
        node.outputs.clear()
        graph.nodes.remove(node)
        changed = True
    if changed:
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return changed


def _ends(node: gs.Node, reserved: Reserved) -> tuple[gs.Variable, gs.Variable] | None:
    """The tensors before and behind the Reshapes around the Gemm `node`, if only the last axis of one becomes that of
    the other."""
    if node.op != "Gemm" or not is_standard(node) or not _is_plain(node):
        return None
    joined, parted = node.inputs[0], node.outputs[0]
    if len(joined.inputs) != 1 or len(parted.outputs) != 1 or parted in reserved:
        return None
    before, behind = joined.inputs[0], parted.outputs[0]
    if not all(end.op == "Reshape" and is_standard(end) for end in (before, behind)) or behind.inputs[0] is not parted:
        return None
    x, y = before.inputs[0], behind.outputs[0]
    if x.shape is None or y.shape is None or len(x.shape) < 3 or len(x.shape) != len(y.shape):
        return None
    K, N = node.inputs[1].shape if not node.attrs.get("transB", 0) else node.inputs[1].shape[::-1]
    same = all(_is_same(a, b) for a, b in zip(list(x.shape)[:-1], list(y.shape)[:-1], strict=True))
    return (x, y) if same and x.shape[-1] == K and y.shape[-1] == N and x.dtype == np.float32 else None


def _is_plain(node: gs.Node) -> bool:
    numbers = node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0 and not node.attrs.get("transA", 0)
    constant = all(isinstance(t, gs.Constant) for t in node.inputs[1:])
    N = node.inputs[1].shape[0 if node.attrs.get("transB", 0) else 1] if constant else None
    return bool(numbers and constant and all(list(t.shape) == [N] for t in node.inputs[2:]))


def _is_same(a: Any, b: Any) -> bool:
    """True for equal sizes; of free ones only where they have a name."""
    return a is not None and a == b and (isinstance(a, int) or not str(a).startswith(MADE_UP))
