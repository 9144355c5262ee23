"""Write a plan into the graph: from a masked layer to a smaller one (paper §4.1.1, reorder and truncate).

Where standard operators can say it: a Gather (or Slice) of the kept features and a smaller weight. Otherwise, for a
convolution that keeps different channels at different taps: a KeptConv with its function body.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.formats import functions
from deftonnx.formats.conv_function import IMAGE_AXES
from deftonnx.layers import LinearLayer
from deftonnx.layers.conv import ConvLayer
from deftonnx.layers.linear import unused_name

Array = np.ndarray[Any, Any]
WIDTHS = (64, 32, 16, 8, 1)
NARROWEST = 8
"""Channels of a block that a CUDA kernel walks, at least."""


def reorder(kept: Array, K: int) -> Array:
    """The permutation of K features that brings the kept ones to the front by paired swaps (§4.1.1).

    Features already in the right part stay; the misplaced retained and the misplaced discarded ones are equally many
    and trade places in pairs.
    """
    order = np.arange(K)
    retained = np.zeros(K, dtype=bool)
    retained[kept] = True
    border = len(kept)
    misplaced_discarded = np.flatnonzero(~retained[:border])
    misplaced_retained = border + np.flatnonzero(retained[border:])
    order[misplaced_discarded], order[misplaced_retained] = misplaced_retained, misplaced_discarded
    return order


def eliminate(graph: gs.Graph, layers: list[LinearLayer], walked: Collection[str] = ()) -> bool:
    """Shrink every layer whose `kept` is not everything. The graph computes the same afterwards, to rounding.

    The convolutions named in `walked` become KeptConv also where a Gather could take the channels that they keep.
    """
    gathers: dict[tuple[Any, ...], gs.Variable] = {}
    changed = False
    for layer in layers:
        if layer.kept.all():
            continue
        changed = True
        if keeps_whole_channels(layer) and layer.name not in walked:
            _truncate(graph, layer, gathers)
        else:
            assert isinstance(layer, ConvLayer)
            _to_kept_conv(layer)
    return changed


def keeps_whole_channels(layer: LinearLayer) -> bool:
    """True where every tap keeps the same channels, so that standard operators can express the elimination."""
    return bool((layer.kept == layer.kept[:, :1]).all())


def walks_channels(layer: LinearLayer) -> bool:
    """True for a convolution whose kept channels are blocks that a CUDA kernel can walk."""
    if not isinstance(layer, ConvLayer) or len(layer.kernel) not in IMAGE_AXES:
        return False
    return not layer.kept.all() and _made_of_blocks(layer.kept, NARROWEST)


def _truncate(graph: gs.Graph, layer: LinearLayer, gathers: dict[tuple[Any, ...], gs.Variable]) -> None:
    """x → Gather(kept) → the layer with a smaller weight. Layers that keep the same features share the Gather."""
    kept = even(layer.kept[:, 0])  # (groups, channels)
    if layer.input_features == layer.channels:
        order = reorder(np.flatnonzero(kept[0]), layer.channels)[: int(kept[0].sum())]
    else:
        order = np.concatenate(
            [
                g * layer.channels + reorder(np.flatnonzero(k), layer.channels)[: int(k.sum())]
                for g, k in enumerate(kept)
            ]
        )
    layer.keep_inputs(order)
    key = (id(layer.x), layer.input_axis, order.tobytes())
    if key not in gathers:
        gathers[key] = _take(graph, layer, order)
    layer.node.inputs[list(map(id, layer.node.inputs)).index(id(layer.x))] = gathers[key]
    layer.x = gathers[key]


def even(kept: Array) -> Array:
    """`kept` (groups, channels) with as many in every group as in the fullest, and at least one.

    Absorption may have dropped a kept feature whose weights were all zero. What is added has zero weights too.
    """
    kept = kept.copy()
    most = max(1, int(kept.sum(1).max()))
    for row in kept:
        row[np.flatnonzero(~row)[: most - int(row.sum())]] = True
    return kept


def _take(graph: gs.Graph, layer: LinearLayer, order: Array) -> gs.Variable:
    """A new node before the layer that takes the features `order` of its input: a Slice where they are a prefix."""
    result = gs.Variable(unused_name(f"{layer.name}/kept"), dtype=layer.x.dtype)
    prefix = bool((order == np.arange(len(order))).all())
    axis = layer.input_axis
    if axis < 0 and layer.x.shape is not None:
        axis += len(layer.x.shape)
    if prefix and graph.opset >= 10:
        bounds = [
            gs.Constant(unused_name(f"{layer.name}/kept_{what}"), np.array([value], dtype=np.int64))
            for what, value in (("start", 0), ("end", len(order)), ("axis", axis))
        ]
        node = gs.Node("Slice", unused_name(f"{layer.name}/slice"), inputs=[layer.x, *bounds], outputs=[result])
    elif prefix:
        attrs = {"axes": [axis], "starts": [0], "ends": [len(order)]}
        node = gs.Node("Slice", unused_name(f"{layer.name}/slice"), attrs, [layer.x], [result])
    else:
        index = gs.Constant(unused_name(f"{layer.name}/kept_index"), order.astype(np.int64))
        node = gs.Node("Gather", unused_name(f"{layer.name}/gather"), {"axis": axis}, [layer.x, index], [result])
    graph.nodes.insert(next(i for i, n in enumerate(graph.nodes) if n is layer.node), node)
    return result


def _to_kept_conv(layer: ConvLayer) -> None:
    """Turn the layer's Conv into a KeptConv of the widest blocks that its mask is made of."""
    node, taps, groups = layer.node, layer.taps, layer.groups
    width = next(w for w in WIDTHS if _made_of_blocks(layer.kept, w))
    blocks = layer.kept.reshape(groups * taps * layer.channels // width, width)[:, 0]
    kept_blocks = np.flatnonzero(blocks) if blocks.any() else np.zeros(1, dtype=np.int64)
    weight = layer.weight().reshape(len(blocks), width, layer.outputs)[kept_blocks]
    bias = layer.bias()
    dtype = node.inputs[1].dtype
    parameters = {
        "weight": weight.astype(dtype),
        "bias": np.zeros(layer.N, dtype=dtype) if bias is None else bias.astype(dtype),
        "kept_blocks": kept_blocks.astype(np.int64),
    }
    node.op, node.domain = functions.KEPT_CONV, functions.DOMAIN
    node.inputs = [
        node.inputs[0],
        *(gs.Constant(unused_name(f"{node.name}/{name}"), values) for name, values in parameters.items()),
    ]
    node.attrs.setdefault("group", 1)
    node.attrs["kernel_shape"] = list(layer.kernel)
    node.attrs["blocks_shape"] = [len(blocks), width, layer.outputs]
    node.attrs["dense_shape"] = [groups, taps, layer.channels, layer.outputs]
    node.attrs["weight_shape"] = [layer.N, layer.channels, *layer.kernel]
    node.attrs["zero"] = gs.Constant("", np.zeros(1, dtype=dtype))
    node.attrs["layout_version"] = functions.LAYOUT_VERSION


def _made_of_blocks(kept: Array, width: int) -> bool:
    """True where `kept` (groups, taps, channels) is whole runs of `width` channels."""
    if kept.shape[2] % width:
        return False
    runs = kept.reshape(-1, width)
    return bool((runs == runs[:, :1]).all())
