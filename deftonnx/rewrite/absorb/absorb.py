"""The absorption pass: works on the masked graph, before any Gather is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.calibration.activations import reads
from deftonnx.layers import LinearLayer
from deftonnx.rewrite.absorb import attention, elementwise, layout, spatial
from deftonnx.rewrite.absorb.channels import ALIGNMENT, Array, ChannelMap, is_identity
from deftonnx.rewrite.eliminate import keeps_whole_channels

Rule = Callable[[gs.Node, ChannelMap], None]
RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **spatial.RULES,
    **layout.RULES,
    "com.microsoft::MultiHeadAttention": attention.multi_head_attention,
}
"""A new operator that channels may pass through is one row here. Operators without a rule keep everything."""
ANY_RANK = {*elementwise.UNARY, *spatial.POOLING, "BatchNormalization", "Conv", "InstanceNormalization"}
"""Operators whose rules count axes from the front, so that a tensor's shape need not be known."""


PIECEWISE_LINEAR = {"Relu", "LeakyRelu", "PRelu", "Clip", "Identity", "Dropout", "Add", "Sub", "Shape"}
PIECEWISE_LINEAR |= (spatial.RULES.keys() | layout.RULES.keys()) - {"MatMul"}
"""Operators through which an error passes on as it is, or not at all."""


@dataclass(frozen=True)
class Source:
    """Where the input features of a layer are made: by `makers`, `unit` neighbours by one feature or head of theirs."""

    makers: list[LinearLayer]
    unit: int


def absorb(graph: gs.Graph, layers: list[LinearLayer]) -> bool:
    """Delete from their producers the features that no layer keeps, and make what a layer keeps a prefix.

    `layers` are all linear layers of `graph` with their `kept` features; the graph computes the same afterwards, to
    rounding. Returns whether anything changed.
    """
    channels = _map(graph, layers)
    for layer, atoms in _inputs(layers, channels):
        channels.need(atoms[_reads_channel(layer)])
    channels.settle()
    _make_prefixes(layers, channels)
    before = _signature(layers)
    channels.apply()
    return before != _signature(layers)


def absorbable(graph: gs.Graph, layers: list[LinearLayer]) -> dict[str, Source]:
    """The sources of the layers whose eliminated features their producer could drop, by the layers' names: nobody else
    reads them."""
    channels = _map(graph, layers)
    readers: dict[int, set[int]] = {}
    inputs = list(_inputs(layers, channels))
    for layer, atoms in inputs:
        for root in channels.roots(atoms).tolist():
            readers.setdefault(root, set()).add(id(layer.x))
    makers = [(layer, set(channels.roots(atoms).tolist())) for layer, atoms in _outputs(layers, channels)]
    sources = {}
    for layer, atoms in inputs:
        roots = channels.roots(atoms)
        if channels.alive_mask(atoms).any() or any(readers[root] != {id(layer.x)} for root in roots.tolist()):
            continue
        own = set(roots.tolist())
        sources[layer.name] = Source([maker for maker, made in makers if own & made], _unit(roots))
    return sources


def _unit(roots: Array) -> int:
    """Neighbours that stand or fall together, if they are equally many everywhere; 1 where they are not."""
    distinct = len(np.unique(roots))
    size = len(roots) // distinct
    whole = len(roots) % distinct == 0 and bool((roots.reshape(-1, size) == roots[::size, None]).all())
    return size if whole else 1


def _map(graph: gs.Graph, layers: list[LinearLayer]) -> ChannelMap:
    """The channel map of a graph in which no layer has said yet what it needs."""
    channels = ChannelMap(graph.opset, graph.outputs)
    by_node = {id(layer.node): layer for layer in layers}
    made = {id(layer.y) for layer in layers}
    for node in graph.nodes:
        if layer := by_node.get(id(node)):
            _visit_layer(layer, channels)
        elif made.isdisjoint(map(id, node.outputs)):  # the Add of a bias belongs to its layer
            _visit(node, channels)
    for tensor in graph.outputs:
        channels.fix_all(tensor)
    return channels


def _inputs(layers: list[LinearLayer], channels: ChannelMap) -> Iterator[tuple[LinearLayer, Array]]:
    """The layers whose input features are tracked, with their atoms."""
    for layer in layers:
        axis = _absolute(layer.input_axis, layer.x)
        if axis is not None and axis in channels.axes(layer.x):
            yield layer, channels.axes(layer.x)[axis]


def _outputs(layers: list[LinearLayer], channels: ChannelMap) -> Iterator[tuple[LinearLayer, Array]]:
    """The layers whose output features are tracked, with their atoms."""
    for layer in layers:
        axis = _absolute(layer.output_axis, layer.y)
        if axis is not None and axis in channels.axes(layer.y):
            yield layer, channels.axes(layer.y)[axis]


def _visit(node: gs.Node, channels: ChannelMap) -> None:
    rule = RULES.get(node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}::{node.op}")
    shaped = all(t.shape is not None for t in node.inputs if channels.axes(t)) or node.op in ANY_RANK
    if rule is not None and shaped and not any(isinstance(v, gs.Graph) for v in node.attrs.values()):
        rule(node, channels)
        return
    for tensor in reads(node):
        channels.fix_all(tensor)


def _visit_layer(layer: LinearLayer, channels: ChannelMap) -> None:
    input_axis = _absolute(layer.input_axis, layer.x)
    for axis, atoms in channels.axes(layer.x).items():
        if axis != input_axis:
            channels.fix(atoms)
            continue
        if layer.input_features > layer.channels:
            channels.balance(atoms.reshape(layer.groups, layer.channels))
        channels.edits.append(partial(_edit_inputs, channels, atoms, layer))
    output_axis = _absolute(layer.output_axis, layer.y)
    if output_axis is None:
        return
    made = channels.fresh(layer.output_features)
    for tensor in (layer.y, *layer.node.outputs):  # a MatMul's product and its sum with the bias
        channels.track(tensor, output_axis, made)
    if layer.groups > 1 and layer.output_features == layer.N:
        channels.balance(made.reshape(layer.groups, -1))
    if layer.op == "Conv" and len(made) % ALIGNMENT == 0:
        channels.align(made)
    channels.edits.append(lambda: _edit(channels, made, layer.keep_outputs))


def _edit_inputs(channels: ChannelMap, atoms: Array, layer: LinearLayer) -> None:
    """Drop what is dead. If only revived channels are left that the layer does not keep, it keeps them, as zeros: that
    costs less than a Gather."""
    spare = channels.revived_mask(atoms)[channels.alive(atoms)]
    _edit(channels, atoms, layer.keep_inputs)
    spare = spare.reshape((1 if layer.input_features == layer.channels else layer.groups), 1, layer.channels)
    if (layer.kept | spare).all():
        layer.kept |= spare


def _edit(channels: ChannelMap, atoms: Array, keep: Callable[[Array], None]) -> None:
    alive = channels.alive(atoms)
    if not is_identity(alive, len(atoms)):
        keep(alive)


def _absolute(axis: int, tensor: gs.Tensor) -> int | None:
    if axis >= 0:
        return axis
    return None if tensor.shape is None else axis + len(tensor.shape)


def _reads_channel(layer: LinearLayer) -> Array:
    """True where a position of `x` along the input axis has a kept feature with a weight that is not zero."""
    weight = layer.weight().reshape(layer.groups, layer.taps, layer.channels, -1)
    read: Array = np.asarray((layer.kept & weight.any(3)).any(1))  # (groups, channels)
    return np.asarray(read.any(0)) if layer.input_features == layer.channels else read.reshape(-1)


def _make_prefixes(layers: list[LinearLayer], channels: ChannelMap) -> None:
    """Order producers so that a layer which keeps only some of what is left finds them first (ladder step 2)."""
    some = []
    for layer, atoms in _inputs(layers, channels):
        if layer.input_features > layer.channels:
            continue
        kept: Array = np.asarray(layer.kept.any((0, 1)))
        if bool(np.all(layer.kept == kept)) and not kept[channels.alive(atoms)].all():
            some.append((int(kept.sum()) * layer.rows_per_sample()[1], atoms, kept))
    windows = [layer for layer in layers if layer.taps > 1 and not keeps_whole_channels(layer)]
    for _, atoms, kept in sorted(some, key=lambda p: -p[0]):
        if not any(np.intersect1d(atoms, a).size for w in windows for a in channels.axes(w.x).values()):
            channels.prefer(atoms, kept)


def _signature(layers: list[LinearLayer]) -> list[tuple[int, int, bytes]]:
    return [(layer.channels, layer.outputs, layer.kept.tobytes()) for layer in layers]


def readers(graph: gs.Graph, layers: list[LinearLayer]) -> dict[str, list[tuple[LinearLayer, Array]]]:
    """For each layer whose outputs only reach layers feature by feature: those layers, and for every position of
    their input axis the output feature it comes from, or −1. Layers read in any other way are left out, and so are
    those behind an activation that is not linear piece by piece: a first-order view of it misleads (GELU's did)."""
    channels = _map(graph, layers)
    inputs = list(_inputs(layers, channels))
    nodes = {id(layer.node) for layer in layers}
    result = {}
    for layer in layers:
        axis = _absolute(layer.output_axis, layer.y)
        made = channels.axes(layer.y).get(axis) if axis is not None else None
        if made is None or channels.alive_mask(made).any() or not _piecewise_linear(layer, nodes):
            continue
        feature = {root: n for n, root in enumerate(channels.roots(made).tolist())}
        if len(feature) < len(made):
            continue
        found = [
            (reader, np.array([feature.get(r, -1) for r in channels.roots(atoms).tolist()])) for reader, atoms in inputs
        ]
        result[layer.name] = [(reader, source) for reader, source in found if (source >= 0).any()]
    return result


def _piecewise_linear(layer: LinearLayer, nodes: set[int]) -> bool:
    """True where only piecewise linear operators lie between the layer and the layers (`nodes`) that read it."""
    seen: set[int] = set()
    tensors = [layer.y]
    while tensors:
        for user in tensors.pop().outputs:
            if id(user) in seen or id(user) in nodes:
                continue
            if user.op not in PIECEWISE_LINEAR:
                return False
            seen.add(id(user))
            tensors.extend(user.outputs)
    return True
