"""Fold what multiplies the outputs of a linear layer by constants into the layer, if it alone is read.

BatchNormalization, and a multiplication by one factor a feature or one for all: the scale of a layer whose output is
added to a residual (LayerScale in ConvNeXt, DINOv2 and CaiT), a scale of queries, and the half of a feed-forward part
in a Conformer. A Transpose may stand between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers import LinearLayer, Refusal, match
from deftonnx.layers.conv import DEPTHWISE, ConvLayer
from deftonnx.layers.linear import Array, is_standard
from deftonnx.rewrite.reserved import Reserved


def fold_batch_norm(graph: gs.Graph) -> bool:
    """Fold inference BatchNormalization with constant parameters into the linear layer that alone feeds it."""
    changed = False
    reserved = Reserved(graph)
    for node in list(graph.nodes):
        if node.op != "BatchNormalization" or not is_standard(node) or not _is_inference(graph, node):
            continue
        layer = _layer_before(graph, node.inputs[0], reserved)
        if layer is None or not _has_channels(layer, node.inputs[1].shape[0]):
            continue
        scale, shift, mean, variance = (t.values.astype(np.float64) for t in node.inputs[1:5])
        factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        _fold(graph, node, layer, factor, shift - mean * factor)
        changed = True
    return changed


def fold_scales(graph: gs.Graph) -> bool:
    """Fold multiplications by constants into the linear layers that alone feed them."""
    changed = False
    reserved = Reserved(graph)
    for node in list(graph.nodes):
        found = _scaled(node, reserved)
        layer = None if found is None else _layer_before(graph, found[0], reserved)
        if found is None or layer is None or _is_shared(layer):
            continue
        factors = _by_output(layer, *found[1:])
        if factors is not None:
            _fold(graph, node, layer, factors, np.zeros(layer.N))
            changed = True
    return changed


def _is_shared(layer: LinearLayer) -> bool:
    """True where other nodes read the weight too: folding would store it once for each."""
    return any(
        isinstance(t, gs.Constant) and len(t.outputs) > 1 and np.prod(t.shape) > layer.N for t in layer.node.inputs
    )


def _fold(graph: gs.Graph, node: gs.Node, layer: LinearLayer, factor: Array, offset: Array) -> None:
    """Let `layer` compute what `node` makes of its output: that times `factor` (N,) plus `offset` (N,)."""
    weight, bias = layer.weight(), layer.bias()
    window = weight.shape[2] * layer.groups // layer.N  # taps a ConvTranspose holds in its columns
    per_column = np.repeat(factor, window).reshape(layer.groups, 1, -1)
    y, result = layer.y, node.outputs[0]
    between = None if y in node.inputs else next(t.inputs[0] for t in node.inputs if t.inputs)  # a Transpose
    layer.store(weight * per_column, offset + (0.0 if bias is None else bias) * factor)
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes.remove(node)
    if between is not None:
        between.outputs = [result]
    else:
        producer = layer.y.inputs[0]  # which is another one where a bias Add was inserted
        producer.outputs = [result if t is layer.y else t for t in producer.outputs]


def _is_inference(graph: gs.Graph, node: gs.Node) -> bool:
    """True for a BatchNormalization with constant parameters, one a channel, whose statistics nobody reads."""
    constant = all(isinstance(t, gs.Constant) and len(t.shape) == 1 for t in node.inputs[1:5])
    others = any(t.outputs or t in graph.outputs for t in node.outputs[1:] if t.name)
    return constant and not others and not node.attrs.get("training_mode", 0)


def _layer_before(graph: gs.Graph, y: gs.Tensor, reserved: Reserved) -> LinearLayer | None:
    """The linear layer that makes `y`, which has one reader."""
    if len(y.outputs) != 1 or not y.inputs or y in reserved:
        return None
    producer = y.inputs[0]
    if producer.op == "Add" and producer.inputs:
        products = [t.inputs[0] for t in producer.inputs if t.inputs and t.inputs[0].op == "MatMul"]
        producer = products[0] if products else producer
    layer: Any = match(producer)
    if isinstance(layer, Refusal) and layer.reason == DEPTHWISE and producer.op == "Conv":
        layer = ConvLayer(producer)  # no linear layer to reduce, but it can be scaled
    if not isinstance(layer, LinearLayer) or layer.y is not y or producer.outputs[0] in reserved:
        return None
    layer.graph = graph
    return layer


def _has_channels(layer: LinearLayer, channels: int) -> bool:
    """True where the output features of `layer` are that many channels of axis 1."""
    rank = len(layer.y.shape) if layer.y.shape is not None else None
    axis = layer.output_axis if layer.output_axis >= 0 or rank is None else layer.output_axis + rank
    return axis == 1 and channels == layer.N


def _scaled(node: gs.Node, reserved: Reserved) -> tuple[gs.Tensor, list[int] | None, Array] | None:
    """What the Mul or Div `node` multiplies, the Transpose that stands between if any, and the constant factors with
    the dimensions of the product."""
    if node.op not in ("Mul", "Div") or not is_standard(node):
        return None
    constants = [i for i, t in enumerate(node.inputs) if isinstance(t, gs.Constant)]
    if len(constants) != 1 or (node.op == "Div" and constants != [1]):
        return None
    y, values = node.inputs[1 - constants[0]], node.inputs[constants[0]].values
    if y.shape is None or y.dtype != np.float32 or values.ndim > len(y.shape) or not values.all():
        return None
    factors = values.astype(np.float64).reshape((1,) * (len(y.shape) - values.ndim) + values.shape)
    factors = 1 / factors if node.op == "Div" else factors
    maker = y.inputs[0] if len(y.inputs) == 1 else None
    if maker is None or maker.op != "Transpose" or not is_standard(maker):
        return y, None, factors
    if len(y.outputs) > 1 or y in reserved:
        return None
    return maker.inputs[0], list(maker.attrs.get("perm") or reversed(range(len(y.shape)))), factors


def _by_output(layer: LinearLayer, perm: list[int] | None, factors: Array) -> Array | None:
    """One factor for each output of `layer`, (N,); None where another axis has several."""
    rank = factors.ndim
    axis = layer.output_axis % rank
    if perm is not None:
        axis = perm.index(axis)
    if factors.size != factors.shape[axis] or factors.size not in (1, layer.N):
        return None
    return np.broadcast_to(factors.reshape(-1), (layer.N,))
