"""The activations a packed operator can end with, each as standard ONNX operators.

Every entry of ACTIVATIONS makes the nodes from the float32 value `Z` to `A`. Parameters alpha and beta are
attributes of the calling node: the slope of leaky_relu, the bounds of clip, slope and offset of hard_sigmoid, the
factor inside the sigmoid of swish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx
from onnx import helper, numpy_helper

Nodes = list[onnx.NodeProto]


def float_attribute(name: str, output: str) -> onnx.NodeProto:
    """A constant float32 scalar, the calling node's attribute `name`."""
    node = helper.make_node("Constant", [], [output])
    node.attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name=name, type=onnx.AttributeProto.FLOAT))
    return node


def float_constant(output: str, value: float) -> onnx.NodeProto:
    """A constant float32 scalar."""
    return helper.make_node("Constant", [], [output], value=numpy_helper.from_array(np.array(value, np.float32)))


def _unary(operator: str) -> Nodes:
    return [helper.make_node(operator, ["Z"], ["A"])]


def _gated(*gate: onnx.NodeProto) -> Nodes:
    """Z times what the nodes `gate` leave in `gate`."""
    return [*gate, helper.make_node("Mul", ["Z", "gate"], ["A"])]


def _leaky_relu() -> Nodes:
    return [
        float_attribute("alpha", "slope"),
        float_constant("zero", 0),
        helper.make_node("Max", ["Z", "zero"], ["above"]),
        helper.make_node("Min", ["Z", "zero"], ["below"]),
        helper.make_node("Mul", ["below", "slope"], ["sloped"]),
        helper.make_node("Add", ["above", "sloped"], ["A"]),
    ]


def _clip() -> Nodes:
    return [
        float_attribute("alpha", "low"),
        float_attribute("beta", "high"),
        helper.make_node("Clip", ["Z", "low", "high"], ["A"]),
    ]


def _hard_sigmoid() -> Nodes:
    return [
        float_attribute("alpha", "slope"),
        float_attribute("beta", "offset"),
        float_constant("zero", 0),
        float_constant("one", 1),
        helper.make_node("Mul", ["Z", "slope"], ["sloped"]),
        helper.make_node("Add", ["sloped", "offset"], ["line"]),
        helper.make_node("Clip", ["line", "zero", "one"], ["A"]),
    ]


def _gelu() -> Nodes:
    """0.5 z (1 + erf(z / sqrt(2))), written as exporters do: ONNX Runtime fuses it into one operator."""
    return [
        float_constant("half", 0.5),
        float_constant("one", 1),
        float_constant("sqrt_two", np.sqrt(2)),
        helper.make_node("Div", ["Z", "sqrt_two"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["twice_gate"]),
        helper.make_node("Mul", ["Z", "twice_gate"], ["twice"]),
        helper.make_node("Mul", ["twice", "half"], ["A"]),
    ]


def _gelu_tanh() -> Nodes:
    """0.5 z (1 + tanh u) = z sigmoid(2u) with u = sqrt(2 / pi) (z + 0.044715 z³)."""
    return _gated(
        float_constant("cubic", 0.044715),
        float_constant("one", 1),
        float_constant("twice_root", 2 * np.sqrt(2 / np.pi)),
        helper.make_node("Mul", ["Z", "Z"], ["square"]),
        helper.make_node("Mul", ["square", "cubic"], ["cubic_term"]),
        helper.make_node("Add", ["cubic_term", "one"], ["factor"]),
        helper.make_node("Mul", ["Z", "factor"], ["polynomial"]),
        helper.make_node("Mul", ["polynomial", "twice_root"], ["exponent"]),
        helper.make_node("Sigmoid", ["exponent"], ["gate"]),
    )


def _silu() -> Nodes:
    return _gated(helper.make_node("Sigmoid", ["Z"], ["gate"]))


def _swish() -> Nodes:
    return _gated(
        float_attribute("alpha", "rate"),
        helper.make_node("Mul", ["Z", "rate"], ["exponent"]),
        helper.make_node("Sigmoid", ["exponent"], ["gate"]),
    )


def _hard_swish() -> Nodes:
    return _gated(helper.make_node("HardSigmoid", ["Z"], ["gate"], alpha=1 / 6, beta=0.5))


ACTIVATIONS: Mapping[str, Callable[[], Nodes]] = MappingProxyType(
    {
        "none": lambda: _unary("Identity"),
        "relu": lambda: _unary("Relu"),
        "leaky_relu": _leaky_relu,
        "clip": _clip,
        "sigmoid": lambda: _unary("Sigmoid"),
        "tanh": lambda: _unary("Tanh"),
        "silu": _silu,
        "swish": _swish,
        "gelu": _gelu,
        "gelu_tanh": _gelu_tanh,
        "hard_sigmoid": _hard_sigmoid,
        "hard_swish": _hard_swish,
    }
)
