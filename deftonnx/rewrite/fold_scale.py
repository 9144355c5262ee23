"""Fold a multiplication by constants, one a feature or one for all, into the linear layer that alone feeds it.

That is the scale of a layer whose output is added to a residual (LayerScale in ConvNeXt, DINOv2 and CaiT), a scale of
queries, and the half of a feed-forward part in a Conformer. A Transpose may stand between.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers import LinearLayer
from deftonnx.layers.linear import Array, is_standard
from deftonnx.rewrite.reserved import Reserved


def scaled(node: gs.Node, reserved: Reserved) -> tuple[gs.Tensor, list[int] | None, Array] | None:
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


def by_output(layer: LinearLayer, perm: list[int] | None, factors: Array) -> Array | None:
    """One factor for each output of `layer`, (N,); None where another axis has several."""
    rank = factors.ndim
    axis = layer.output_axis % rank
    if perm is not None:
        axis = perm.index(axis)
    if factors.size != factors.shape[axis] or factors.size not in (1, layer.N):
        return None
    return np.broadcast_to(factors.reshape(-1), (layer.N,))
