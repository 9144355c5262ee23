"""Operators that hold weights but are not linear layers in our sense: recognised and left alone, with the reason."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from deftonnx.layers.linear import Refusal

REASONS = {
    "LSTM": "recurrent: its weights are used at every time step",
    "GRU": "recurrent: its weights are used at every time step",
    "RNN": "recurrent: its weights are used at every time step",
    "Einsum": "an Einsum: export it as MatMul to have it reduced",
    "QLinearConv": "already quantised",
    "QLinearMatMul": "already quantised",
    "QGemm": "already quantised",
    "ConvInteger": "already quantised",
    "MatMulInteger": "already quantised",
    "MatMulNBits": "already quantised",
    "DynamicQuantizeMatMul": "already quantised",
    "MatMulIntegerToFloat": "already quantised",
    "DeformConv": "its sampling positions are computed at run time",
    "Attention": "a fused attention operator",
    "MultiHeadAttention": "a fused attention operator",
    "FusedConv": "already fused by ONNX Runtime: optimise the model before it was fused",
    "FusedGemm": "already fused by ONNX Runtime: optimise the model before it was fused",
    "FusedMatMul": "already fused by ONNX Runtime: optimise the model before it was fused",
    "NhwcConv": "already fused by ONNX Runtime: optimise the model before it was fused",
    "DeftConv": "already reduced",
    "KeptConv": "already reduced",
}


def match(node: gs.Node) -> Refusal | None:
    """The refusal of a node that is known to hold weights."""
    has_weight = any(isinstance(t, gs.Constant) for t in node.inputs[1:]) or node.op == "Einsum"
    return Refusal(node.name, node.op, REASONS[node.op]) if has_weight and node.op in REASONS else None
