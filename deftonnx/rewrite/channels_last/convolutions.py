"""From a Conv or KeptConv to a DeftConv between tensors with channels last.

Loads bring 8 channels of 16 bits. Where a convolution has no multiple of them, its weight gets zeros: input channels
that it ignores, and output channels that nobody reads; one with a channel a group gets groups of zeros, and small
groups become one with zeros between them. Small filters of such images, such as those of three colours, have a kernel
that takes the channels as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.formats.functions import KEPT_CONV
from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite import packed_conv
from deftonnx.rewrite.channels_last import patches
from deftonnx.rewrite.channels_last.region import ALIGNMENT, Region

BLOCK = 32
"""Channels at a tap that one copy brings well: narrower ones bind the copy engine (docs/kernels.md)."""
SMALL_FILTER = 1024
"""Features of a filter for images of few channels: custom_ops/runtime/conv_few_channels.cpp."""


def pays(node: gs.Node, opset: int) -> bool:
    """True for a convolution that DeftConv can serve with whole loads of channels."""
    if node.op != KEPT_CONV and not (node.op == "Conv" and is_standard(node)):
        return False
    x, y = node.inputs[0], node.outputs[0]
    if x.shape is None or y.shape is None or x.dtype != np.float32 or y.dtype not in (None, np.float32):
        return False
    if packed_conv.refuse(node, opset, list(x.shape)[2:]) is not None:
        return False
    groups, outputs, channels = node.attrs.get("group", 1), y.shape[1], x.shape[1]
    if not isinstance(outputs, int) or not isinstance(channels, int):
        return False
    if groups == 1:
        return _can_be_filled(node) or outputs % ALIGNMENT == 0
    if channels == groups:
        return outputs % ALIGNMENT == 0 or (outputs == channels and node.op == "Conv")
    return _groups_joined(node) is not None


def convert(region: Region, node: gs.Node, format_name: str) -> gs.Node:
    """Replace `node`, which pays, by a DeftConv with weights packed as `format_name`."""
    x, y = node.inputs[0], node.outputs[0]
    image = [size if isinstance(size, int) else 0 for size in list(x.shape)[2:]]
    extra, conv = 0, node
    if node.op == "Conv" and not region.holds(x) and patches.is_patches(node, ALIGNMENT):
        source, conv = patches.windows(region.graph, node)
        extra, image = -y.shape[1] % ALIGNMENT, list(source.shape)[1:-1]
        conv = _wider(conv, 0, extra)
    elif _can_be_filled(node):
        extra = _filling(y.shape[1])
        source, missing = region.filled(x)
        if not missing and x.shape[1] % ALIGNMENT and int(np.prod(node.inputs[1].shape[1:])) > SMALL_FILTER:
            missing = -x.shape[1] % ALIGNMENT
            source = _fill(region, source, missing, node.name)
        conv = _wider(node, missing, extra)
    elif y.shape[1] % ALIGNMENT:
        source, extra = region.filled(x)  # one channel a group
        if (y.shape[1] + extra) % ALIGNMENT:
            extra = -y.shape[1] % ALIGNMENT
            source = _fill(region, region.last(x), extra, node.name)
        conv = _wider(node, 0, extra)
        conv.attrs["group"] = y.shape[1] + extra
    else:
        source, conv = region.last(x), _with_joined_groups(node)
    result = region.outputs(y, extra)
    made = packed_conv.deft_conv(conv, format_name, source, result, image=image if all(image) else None)
    region.graph.nodes.append(made)
    node.outputs.clear()
    return made


def _groups_joined(node: gs.Node) -> int | None:
    """How many groups make one of whole loads of channels, None where no number up to ALIGNMENT does."""
    groups = node.attrs.get("group", 1)
    sizes = [t.shape[1] // groups for t in (node.inputs[0], node.outputs[0])]
    fits = [n for n in range(1, ALIGNMENT + 1) if groups % n == 0 and not any(n * size % ALIGNMENT for size in sizes)]
    return fits[0] if fits and (fits[0] == 1 or node.op == "Conv") else None


def _with_joined_groups(node: gs.Node) -> gs.Node:
    """The Conv `node` with groups of whole loads of channels: zeros are the weights from one to another of a group."""
    joined = _groups_joined(node) if node.op == "Conv" and node.attrs.get("group", 1) < node.inputs[0].shape[1] else 1
    if joined in (None, 1):
        return node
    assert joined is not None
    weight, groups = node.inputs[1].values, node.attrs["group"] // joined
    outputs, channels = weight.shape[0] // node.attrs["group"], weight.shape[1]
    parts = weight.reshape(groups, joined, outputs, channels, *weight.shape[2:])
    values = np.zeros((groups, joined, outputs, joined, channels, *weight.shape[2:]), weight.dtype)
    for i in range(joined):
        values[:, i, :, i] = parts[:, i]
    values = values.reshape(weight.shape[0], joined * channels, *weight.shape[2:])
    operands = [node.inputs[0], gs.Constant(unused_name(f"{node.name}/joined_weight"), values), *node.inputs[2:]]
    return gs.Node("Conv", node.name, {**node.attrs, "group": groups}, operands)


def _filling(outputs: int) -> int:
    """How many output channels of zeros to add: up to whole loads, and on to whole blocks of the next convolution's
    K loop where those are at most a third more."""
    extra = -outputs % ALIGNMENT
    block = -outputs % BLOCK
    return block if extra and 3 * (block - extra) <= outputs + extra else extra


def _can_be_filled(node: gs.Node) -> bool:
    return node.op == "Conv" and node.attrs.get("group", 1) == 1


def _fill(region: Region, source: gs.Tensor, missing: int, name: str) -> gs.Variable:
    """`source` with `missing` channels of zeros more."""
    pads = np.zeros(2 * len(source.shape), np.int64)
    pads[-1] = missing
    filled = gs.Variable(unused_name(f"{name}/filled_input"), source.dtype)
    filled.shape = [*list(source.shape)[:-1], source.shape[-1] + missing]
    constant = gs.Constant(unused_name(f"{name}/fill"), pads)
    region.graph.nodes.append(gs.Node("Pad", unused_name(f"{name}/fill"), {}, [source, constant], [filled]))
    return filled


def _wider(node: gs.Node, inputs: int, outputs: int) -> gs.Node:
    """The Conv `node` with zero weights for that many input and output channels more."""
    if not inputs and not outputs:
        return node
    weight = node.inputs[1].values
    width = [(0, outputs), (0, inputs)] + [(0, 0)] * (weight.ndim - 2)
    operands = [node.inputs[0], gs.Constant(unused_name(f"{node.name}/wider_weight"), np.pad(weight, width))]
    if len(node.inputs) > 2:
        bias = np.pad(node.inputs[2].values, (0, outputs))
        operands.append(gs.Constant(unused_name(f"{node.name}/wider_bias"), bias))
    return gs.Node("Conv", node.name, dict(node.attrs), operands)
