"""What is added to the scores of an attention in two steps, a bias by position and a mask, is added together first.

The sum is made once for all layers that add the same two, and attention takes it as one mask.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.attention.core import leads_to_product
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.reserved import Reserved


def add_masks_together(graph: gs.Graph) -> bool:
    """Make (a · b + bias) + mask a · b + (bias + mask) before every Softmax, in place; True if anything changed."""
    sums: dict[tuple[int, ...], gs.Variable] = {}
    reserved = Reserved(graph)
    for softmax in [node for node in graph.nodes if node.op == "Softmax" and is_standard(node)]:
        outer = _sum(softmax.inputs[0])
        inner = None if outer is None else next((t for t in outer.inputs if _is_biased(t, reserved)), None)
        if outer is None or inner is None:
            continue
        mask = next(t for t in outer.inputs if t is not inner)
        scores, bias = _parts(inner.inputs[0])
        key = tuple(sorted((id(bias), id(mask))))
        if key not in sums:
            name = unused_name(f"{inner.name}/masks")
            sums[key] = gs.Variable(name, bias.dtype)
            graph.nodes.append(gs.Node("Add", name, {}, [bias, mask], [sums[key]]))
        outer.inputs = [scores, sums[key]]
    if sums:
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return bool(sums)


def _sum(tensor: gs.Tensor) -> gs.Node | None:
    """The Add of two different tensors that makes `tensor`."""
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    return node if node is not None and node.op == "Add" and is_standard(node) and _differ(node) else None


def _differ(node: gs.Node) -> bool:
    return node.inputs[0] is not node.inputs[1]


def _is_biased(tensor: gs.Tensor, reserved: Reserved) -> bool:
    """Whether `tensor` is a product of matrices, scaled or not, with something added, and nothing else reads it."""
    node = _sum(tensor)
    if node is None or len(tensor.outputs) != 1 or tensor in reserved:
        return False
    return sum(map(leads_to_product, node.inputs)) == 1


def _parts(node: gs.Node) -> tuple[gs.Tensor, gs.Tensor]:
    """The product, and what is added to it."""
    first, second = node.inputs
    return (first, second) if leads_to_product(first) else (second, first)
