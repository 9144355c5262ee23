"""Rules for operators that work on each channel's pixels: pooling, resizing, padding, reductions, depthwise Conv."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.rewrite.absorb.channels import ChannelMap, is_identity
from deftonnx.rewrite.absorb.parameters import integers, store_integers


def pooling(node: gs.Node, channels: ChannelMap) -> None:
    """Batch and channel axes pass through; indices (MaxPool's second output) count channels, so they fix them."""
    indices_used = any(map(channels.is_read, node.outputs[1:]))
    for axis, atoms in channels.axes(node.inputs[0]).items():
        if axis > 1 or indices_used:
            channels.fix(atoms)
        else:
            channels.track(node.outputs[0], axis, atoms)


def reduction(node: gs.Node, channels: ChannelMap) -> None:
    """Axes that are not reduced pass through."""
    x = node.inputs[0]
    axes = integers(node, "axes", 1)
    keepdims = node.attrs.get("keepdims", 1)
    reduces_all = axes is None and not node.attrs.get("noop_with_empty_axes", 0)
    known = axes is not None or len(node.inputs) < 2 or not node.inputs[1].name
    for axis, atoms in channels.axes(x).items():
        reduced = {a % len(x.shape) for a in axes or ()}
        if reduces_all or not known or axis in reduced:
            channels.fix(atoms)
        else:
            channels.track(node.outputs[0], axis if keepdims else axis - sum(a < axis for a in reduced), atoms)


def resize(node: gs.Node, channels: ChannelMap) -> None:
    """Axes whose length does not change pass through; a constant list of sizes is updated."""
    x, y = node.inputs[0], node.outputs[0]
    sizes = node.inputs[3] if len(node.inputs) > 3 and node.inputs[3].name else None
    crop = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    for axis, atoms in channels.axes(x).items():
        same = y.shape is not None and y.shape[axis] == len(atoms)
        if not same or crop or node.attrs.get("axes") or (sizes is not None and not isinstance(sizes, gs.Constant)):
            channels.fix(atoms)
            continue
        channels.track(y, axis, atoms)
        if sizes is not None:
            channels.edits.append(partial(_set_size, node, channels, axis, atoms))


def _set_size(node: gs.Node, channels: ChannelMap, axis: int, atoms: np.ndarray) -> None:
    values = node.inputs[3].values.copy()
    values[axis] = len(channels.alive(atoms))
    store_integers(node, "sizes", 3, values)


def pad(node: gs.Node, channels: ChannelMap) -> None:
    """Padded axes gain atoms for the constant border; other axes pass through."""
    x, y = node.inputs[0], node.outputs[0]
    amounts = integers(node, "pads", 1)
    over_axes = len(node.inputs) > 3 and bool(node.inputs[3].name)
    for axis, atoms in channels.axes(x).items():
        if amounts is None or over_axes or len(amounts) != 2 * len(x.shape):
            channels.fix(atoms)
            continue
        before, after = amounts[axis], amounts[axis + len(x.shape)]
        if before == after == 0:
            channels.track(y, axis, atoms)
            continue
        if before < 0 or after < 0 or node.attrs.get("mode", "constant") != "constant":
            channels.fix(atoms)
            continue
        head, tail = channels.fresh(before), channels.fresh(after)
        channels.track(y, axis, np.concatenate([head, atoms, tail]))

        def edit(axis: int = axis, head: np.ndarray = head, tail: np.ndarray = tail) -> None:
            values = np.array(integers(node, "pads", 1))
            values[axis], values[axis + len(x.shape)] = len(channels.alive(head)), len(channels.alive(tail))
            store_integers(node, "pads", 1, values)

        channels.edits.append(edit)


def depthwise(node: gs.Node, channels: ChannelMap) -> None:
    """A depthwise Conv's output channels follow its input channel."""
    atoms = channels.axes(node.inputs[0]).get(1)
    constant = all(isinstance(t, gs.Constant) for t in node.inputs[1:] if t.name)
    groups = node.attrs.get("group", 1)
    if atoms is None or not constant or node.inputs[1].shape[1] != 1 or groups != len(atoms):
        for t in node.inputs:
            channels.fix_all(t)
        return
    for axis, others in channels.axes(node.inputs[0]).items():
        if axis != 1:
            channels.fix(others)
    outputs = np.repeat(atoms, node.inputs[1].shape[0] // groups)
    channels.track(node.outputs[0], 1, outputs)
    for i in range(1, len(node.inputs)):
        if node.inputs[i].name:
            channels.edit_constant(node, i, 0, outputs)

    def edit() -> None:
        if not is_identity(channels.alive(atoms), len(atoms)):
            node.attrs["group"] = len(channels.alive(atoms))

    channels.edits.append(edit)


POOLING = ["AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"]
REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]
RULES = {
    **dict.fromkeys(POOLING, pooling),
    **dict.fromkeys(REDUCTIONS, reduction),
    "Resize": resize,
    "Upsample": resize,
    "Pad": pad,
    "Conv": depthwise,
}
