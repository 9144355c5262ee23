"""The pass: convolutions first to last, and behind each what can follow it with channels last."""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs

from deftonnx.formats.functions import KEPT_CONV
from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.channels_last import convolutions
from deftonnx.rewrite.channels_last.leaving import LEAVING
from deftonnx.rewrite.channels_last.moves import MOVES
from deftonnx.rewrite.channels_last.normalisation import written_out
from deftonnx.rewrite.channels_last.pooling import POOLS, scale
from deftonnx.rewrite.channels_last.region import Region
from deftonnx.rewrite.channels_last.scaling import as_convolution, is_scaling
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.reserved import Reserved

_MOVES = MOVES | POOLS | LEAVING
_INCREASING = {"Clip", "Relu"}
_CONVOLUTIONS = {"Conv", KEPT_CONV}


def to_channels_last(
    graph: gs.Graph, format_name: str, wanted: Callable[[gs.Node], bool] = lambda node: True
) -> dict[str, gs.Node]:
    """Rewrite in place; the DeftConv that each convolution has become, by the convolution's name.

    Shapes have to be known where they can be. Weights are packed as `format_name`. A convolution, or a
    BatchNormalization that counts as one, that could be one but is not `wanted` stays as it is.
    """
    _activate_before_pooling(graph)
    region = Region(graph)
    normalisations = {id(node): found for node in graph.nodes if (found := written_out(node)) is not None}
    made = {}
    for node in list(graph.nodes):
        if convolutions.pays(node, graph.opset) and wanted(node):
            made[node.name] = convolutions.convert(region, node, format_name)
        elif is_standard(node) and is_scaling(region, node) and wanted(node):
            made[node.name] = convolutions.convert(region, as_convolution(node), format_name)
        elif made and is_standard(node) and node.op == "Transpose" and not region.holds(node.inputs[0]):
            region.adopt(node)
        elif id(node) in normalisations and region.holds(node.inputs[0]):
            scale(region, node, normalisations[id(node)])
        elif is_standard(node) and _can_move(region, node):
            _MOVES[node.op](region, node)
    if made:
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return made


def _can_move(region: Region, node: gs.Node) -> bool:
    if node.op in LEAVING:
        return region.holds(node.inputs[0])
    return node.op in _MOVES and region.reads_one(node)


def _activate_before_pooling(graph: gs.Graph) -> None:
    """relu(MaxPool(x)) = MaxPool(relu(x)), and the convolution that makes x has an epilogue for relu."""
    reserved = Reserved(graph)
    for pool in list(graph.nodes):
        if pool.op != "MaxPool" or not is_standard(pool) or len(pool.outputs) > 1:
            continue
        x, y = pool.inputs[0], pool.outputs[0]
        if len(x.outputs) > 1 or len(y.outputs) != 1 or x in reserved or y in reserved:
            continue
        user = y.outputs[0]
        if user.op not in _INCREASING or user.inputs[0] is not y or not [n for n in x.inputs if n.op in _CONVOLUTIONS]:
            continue
        active = gs.Variable(unused_name(f"{x.name}/active"), x.dtype, x.shape)
        user.inputs = [x, *user.inputs[1:]]
        pool.inputs, pool.outputs, user.outputs = [active], user.outputs, [active]
    sort_nodes(graph)
