"""``ai.deftonnx::LayerNormalization``: the operator of opset 17 for models of older ones, in standard operators.

x: (…, F) float32. scale, bias: (F,). epsilon: attribute. y = (x - mean) / sqrt(variance + epsilon) * scale + bias,
along the last axis. It has no kernel: ONNX Runtime inlines the body and knows what it is.
"""

from __future__ import annotations

import onnx
from onnx import helper, parser

from deftonnx.formats.operator_function import DOMAIN

OPERATOR = "LayerNormalization"
STANDARD_OPSET = 17
"""The opset from which the standard operator is there."""
_OLDEST_IR = 8

_BODY = """
<opset_import: [ "" : {opset} ], domain: "{domain}">
LayerNormalization <epsilon> (x, scale, bias) => (y)
{{
    mean = ReduceMean <axes = [-1]> (x)
    centred = Sub (x, mean)
    two = Constant <value_float = 2.0> ()
    square = Pow (centred, two)
    variance = ReduceMean <axes = [-1]> (square)
    least = Constant <value_float: float = @epsilon> ()
    shifted = Add (variance, least)
    deviation = Sqrt (shifted)
    normal = Div (centred, deviation)
    scaled = Mul (normal, scale)
    y = Add (scaled, bias)
}}
"""


def attach_layer_norm_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give our LayerNormalization nodes their function body, in place; return `model`."""
    others = [f for f in model.functions if (f.domain, f.name) != (DOMAIN, OPERATOR)]
    if len(others) < len(model.functions):
        del model.functions[:]
        model.functions.extend(others)
    if all((node.domain, node.op_type) != (DOMAIN, OPERATOR) for node in model.graph.node):
        return model
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    model.functions.append(parser.parse_function(_BODY.format(opset=opset, domain=DOMAIN)))
    if all(o.domain != DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    return model
