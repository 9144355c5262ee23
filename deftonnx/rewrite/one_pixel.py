"""A convolution of images of one pixel is a product: squeeze-and-excitation, and heads behind global pooling.

Conv (batch, C, 1, 1) → Flatten, Gemm, Reshape. Elementwise operators between two of them work on vectors too, so that
they can be fused into the products; a Reshape gives back what others read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.absorb.elementwise import UNARY
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.reserved import Reserved

_BINARY = {"Add", "Div", "Mul", "Sub"}


def products_of_pixels(graph: gs.Graph, wanted: Callable[[gs.Node], bool] = lambda node: True) -> bool:
    """Rewrite what is `wanted` in place where shapes are known; True if anything changed."""
    flat: dict[int, gs.Variable] = {}  # by the tensor (batch, C, 1, …): the same as (batch, C)
    reserved = Reserved(graph)
    for node in list(graph.nodes):
        if not is_standard(node) or len(node.outputs) != 1:
            continue
        if _is_product(node) and wanted(node):
            _multiply(graph, node, flat)
        elif node.outputs[0] not in reserved and node.outputs[0].shape is not None and _moves(node, flat):
            inputs = [flat.get(id(t), t) for t in node.inputs]
            node.inputs = inputs
            node.outputs = [_given_back(graph, node.outputs[0], flat)]
    if flat:
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return bool(flat)


def _is_product(node: gs.Node) -> bool:
    if node.op != "Conv" or node.attrs.get("group", 1) != 1 or node.inputs[0].shape is None:
        return False
    weight, shape = node.inputs[1], list(node.inputs[0].shape)
    constant = all(isinstance(t, gs.Constant) for t in node.inputs[1:])
    one_pixel = len(shape) > 2 and all(size == 1 for size in shape[2:]) and not any(node.attrs.get("pads") or [])
    one_tap = constant and all(size == 1 for size in weight.shape[2:])
    return one_pixel and one_tap and node.inputs[0].dtype == np.float32


def _moves(node: gs.Node, flat: dict[int, gs.Variable]) -> bool:
    """True for an elementwise operator of which all tensors are flat, and constants numbers."""
    if node.op in _BINARY:
        numbers = [t for t in node.inputs if isinstance(t, gs.Constant) and int(np.prod(t.shape)) == 1]
        small = all(len(t.shape) <= 2 for t in numbers)
        return small and all(id(t) in flat or t in numbers for t in node.inputs) and len(numbers) < len(node.inputs)
    return node.op in UNARY and id(node.inputs[0]) in flat


def _multiply(graph: gs.Graph, node: gs.Node, flat: dict[int, gs.Variable]) -> None:
    x, weight, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if id(x) not in flat:
        flat[id(x)] = gs.Variable(unused_name(f"{node.name}/flat_input"), x.dtype, list(x.shape)[:2])
        name = unused_name(f"{node.name}/flatten")
        graph.nodes.append(gs.Node("Flatten", name, {"axis": 1}, [x], [flat[id(x)]]))
    values = gs.Constant(unused_name(f"{weight.name}/matrix_{node.name}"), weight.values.reshape(weight.shape[:2]))
    node.op, node.attrs = "Gemm", {"transB": 1}
    node.inputs = [flat[id(x)], values, *node.inputs[2:]]
    node.outputs = [_given_back(graph, y, flat)]


def _given_back(graph: gs.Graph, y: gs.Variable, flat: dict[int, gs.Variable]) -> gs.Variable:
    """The vectors that a node makes in place of `y`, which is a Reshape of them."""
    shape = list(y.shape)
    made = gs.Variable(unused_name(f"{y.name}/flat"), y.dtype, shape[:2])
    name = unused_name(f"{y.name}/pixels")
    target = gs.Constant(f"{name}/shape", np.array([0, -1, *[1] * (len(shape) - 2)], np.int64))
    y.inputs.clear()
    graph.nodes.append(gs.Node("Reshape", name, {}, [made, target], [y]))
    flat[id(y)] = made
    return made
