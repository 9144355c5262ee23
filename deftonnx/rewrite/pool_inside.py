"""Pooling inside a convolution.

Where the kernel for images of few channels serves a DeftConv, and all that reads it is a DeftPool that takes the maxima
of squares of 2 x 2 pixels, side by side, the convolution makes these itself. What it would write else, four times as
much, is often the largest tensor of a small network.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import TensorProto

from deftonnx.formats.conv_function import SQUARES, is_conv
from deftonnx.formats.pool_function import MAX, is_pool
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.output_types import has_residual
from deftonnx.rewrite.reserved import Reserved

VECTOR = 8
"""Channels that one load brings. Kernels for X of whole loads do not pool."""
MOST_FEATURES = 1024
"""Of a filter, for the kernel that pools (custom_ops/runtime/conv_few_channels.cpp)."""
_SQUARES = {
    "kind": MAX,
    "kernel_shape": [2, 2],
    "strides": [2, 2],
    "pads": [0] * 4,
    "dilations": [1, 1],
    "ceil_mode": 0,
}


def pool_inside(graph: gs.Graph) -> bool:
    """Rewrite in place; True if anything changed."""
    reserved = Reserved(graph)
    changed = False
    for node in graph.nodes:
        if not is_pool(node.domain, node.op) or any(node.attrs[name] != value for name, value in _SQUARES.items()):
            continue
        x = node.inputs[0]
        if x in reserved or len(x.inputs) != 1 or len(x.outputs) != 1 or not _pools(x.inputs[0], node):
            continue
        convolution = x.inputs[0]
        convolution.attrs["pool"] = list(SQUARES)
        convolution.outputs = list(node.outputs)
        node.outputs.clear()
        changed = True
    if changed:
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return changed


def _pools(node: gs.Node, pool: gs.Node) -> bool:
    """True for a DeftConv in 16 bits that the kernel for few channels serves, of one type with `pool`."""
    if not is_conv(node.domain, node.op) or node.attrs["group"] > 1 or has_residual(node):
        return False
    if node.attrs["compute"] != "auto":
        return False
    output_type = node.attrs["output_type"]
    if output_type == TensorProto.FLOAT or output_type != pool.attrs["output_type"]:
        return False
    few = node.attrs["channels"] % VECTOR and node.attrs["K"] <= MOST_FEATURES
    return bool(few and node.attrs["N"] % VECTOR == 0 and "pool" not in node.attrs)
