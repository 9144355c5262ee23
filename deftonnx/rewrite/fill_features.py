"""Whole vectors of features between products: where a DeftGemm makes no multiple of 8, it makes features of zero more.

Kernels load 8 features of 16 bits at a time; rows of any other length go to slower ones. The weight of the next product
has zeros for the features that are added, in its padding.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import stored, stored_as, unused_name
from deftonnx.rewrite.fuse import is_deft_gemm
from deftonnx.rewrite.output_types import has_residual
from deftonnx.rewrite.reserved import Reserved

VECTOR = 8
_WEIGHT, _SCALE, _BIAS = 1, 2, 3


def fill_features(graph: gs.Graph) -> bool:
    """Rewrite in place; True if anything changed."""
    reserved = Reserved(graph)
    changed = False
    for node in graph.nodes:
        if not is_deft_gemm(node) or not node.attrs["N"] % VECTOR or has_residual(node):
            continue
        y = node.outputs[0]
        if y in reserved or not y.outputs or not all(_multiplies(user, y) for user in y.outputs):
            continue
        _fill_outputs(node, -node.attrs["N"] % VECTOR)
        for user in y.outputs:
            user.attrs["features"] = user.attrs["K"] = node.attrs["N"]
        if y.shape is not None:
            y.shape = [*list(y.shape)[:-1], node.attrs["N"]]
        changed = True
    return changed


def _multiplies(node: gs.Node, x: gs.Tensor) -> bool:
    """True for a DeftGemm of all features of `x`, which it reads but once."""
    return is_deft_gemm(node) and not node.attrs["block"] and [i for i, t in enumerate(node.inputs) if t is x] == [0]


def _fill_outputs(node: gs.Node, extra: int) -> None:
    """Give `node` output features that are activation(0)."""
    weight = node.inputs[_WEIGHT]
    codes = stored(weight)
    filled = np.concatenate([codes, np.zeros((extra, codes.shape[1]), codes.dtype)])
    node.inputs[_WEIGHT] = stored_as(unused_name(f"{weight.name}/filled"), filled)
    for index, value in ((_SCALE, 1.0), (_BIAS, 0.0)):
        constant = node.inputs[index]
        values = np.pad(constant.values, (0, extra), constant_values=value)
        node.inputs[index] = gs.Constant(unused_name(f"{constant.name}/filled"), values)
    node.attrs["N"] += extra
