"""A BatchNormalization that no convolution could take in, as in networks that normalise before they multiply.

y = x · factor + offset, channel by channel, is a convolution with one channel a group and one tap: DeftConv reads x and
writes y once, with the activation behind it, and the tensors around it keep channels last.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import unused_name
from deftonnx.rewrite.channels_last.region import ALIGNMENT, Region

_IMAGE_AXES = (1, 2)


def is_scaling(region: Region, node: gs.Node) -> bool:
    """True for an inference BatchNormalization of whole loads of channels whose input has channels last."""
    if node.op != "BatchNormalization" or not region.holds(node.inputs[0]) or node.attrs.get("training_mode", 0):
        return False
    x, y = node.inputs[0], node.outputs[0]
    constant = all(isinstance(t, gs.Constant) and len(t.shape) == 1 for t in node.inputs[1:5])
    alone = not any(t.outputs or t in region.reserved for t in node.outputs[1:] if t.name)
    known = x.shape is not None and y.shape is not None and len(x.shape) - 2 in _IMAGE_AXES
    return constant and alone and known and x.dtype == np.float32 and node.inputs[1].shape[0] % ALIGNMENT == 0


def as_convolution(node: gs.Node) -> gs.Node:
    """The Conv that takes the place of `node`, which `is_scaling`."""
    x, scale, shift, mean, variance = node.inputs
    factor = scale.values.astype(np.float64) / np.sqrt(
        variance.values.astype(np.float64) + node.attrs.get("epsilon", 1e-5)
    )
    offset = shift.values - mean.values * factor  # (C,)
    axes = len(x.shape) - 2
    weight = factor.astype(np.float32).reshape(-1, *[1] * (axes + 1))
    constants = [
        gs.Constant(unused_name(f"{node.name}/weight"), weight),
        gs.Constant(unused_name(f"{node.name}/bias"), offset.astype(np.float32)),
    ]
    attributes = {"group": len(factor), "kernel_shape": [1] * axes}
    y = node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    return gs.Node("Conv", node.name, attributes, [x, *constants], [y])
