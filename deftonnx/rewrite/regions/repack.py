"""Weights in half under bfloat16 activations become deft16: the tensor cores multiply operands of one type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.formats.gemm_function import weight_array
from deftonnx.formats.packed import PackedWeight
from deftonnx.layers.linear import stored, stored_as, unused_name

HALF, DEFT16 = "half", "deft16"


def to_deft16(node: gs.Node, known: dict[int, gs.Constant]) -> None:
    """Round the codes of a packed `node` to bfloat16 if they are half, in place; its scale stays.

    `known` holds what was made of earlier weights, by their identity: nodes may share one.
    """
    if node.attrs.get("format") != HALF:
        return
    weight = node.inputs[1]
    if id(weight) not in known:
        codes = stored(weight).astype(np.float32).astype(ml_dtypes.bfloat16)
        packed = PackedWeight(DEFT16, codes.view(np.uint16), np.ones(len(codes), np.float32), int(node.attrs["K"]))
        known[id(weight)] = stored_as(unused_name(f"{weight.name}/{DEFT16}"), weight_array(packed))
    node.inputs[1] = known[id(weight)]
    node.attrs["format"] = DEFT16
