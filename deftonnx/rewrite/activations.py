"""Which of DeftGemm's activations an elementwise function is, and the functions that ONNX operators are.

ELEMENTWISE has a row for every operator that an activation may be written with; `recognise` compares the function
that comes out with those that DeftGemm has (formats/activation.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from deftonnx.rewrite.scalar_function import INFINITY, Polynomial, ScalarFunctions, TooLongError

Inputs = list[Polynomial | None]
Rule = Callable[[ScalarFunctions, Inputs, dict[str, Any]], Polynomial | None]
"""From the inputs' functions (None where an optional one is left out) and the attributes to the output's function, or
None where it has no such form."""


@dataclass(frozen=True)
class Activation:
    """An activation of DeftGemm and its parameters."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


def function_of(node: gs.Node, functions: ScalarFunctions, inputs: Inputs) -> Polynomial | None:
    """The function that `node` makes of functions, or None."""
    key = (node.domain if node.domain not in (None, "ai.onnx") else "", node.op)
    if key not in ELEMENTWISE:
        return None
    try:
        return ELEMENTWISE[key](functions, inputs, node.attrs)
    except TooLongError:
        return None


def recognise(functions: ScalarFunctions, polynomial: Polynomial) -> Activation | None:
    """The activation that `polynomial` is."""
    atom = functions.atom_of(polynomial)
    if atom is not None and functions.same(dict(atom.argument), functions.variable):
        if atom.name == "clip" and atom.parameters != (0.0, INFINITY):
            return Activation("clip", *atom.parameters)
        if atom.name == "leaky_relu":
            return Activation("leaky_relu", *atom.parameters)
    try:
        unit = functions.with_unit_clips(polynomial)
        for name, make in _FIXED:
            if functions.same(unit, functions.with_unit_clips(make(functions, functions.variable))):
                return Activation(name)
    except TooLongError:
        return None
    return _swish_with_rate(functions, unit) or _hard_sigmoid(functions, unit)


def _swish_with_rate(functions: ScalarFunctions, unit: Polynomial) -> Activation | None:
    """x · sigmoid(alpha · x)."""
    if len(unit) != 1:
        return None
    ((monomial, factor),) = unit.items()
    if len(monomial) != 2 or monomial[0] != 0 or not math.isclose(factor, 1, rel_tol=functions.tolerance):
        return None
    atom = functions.atoms[monomial[1]]
    rate = dict(atom.argument)
    return Activation("swish", rate[0,]) if atom.name == "sigmoid" and rate.keys() == {(0,)} else None


def _hard_sigmoid(functions: ScalarFunctions, unit: Polynomial) -> Activation | None:
    """clip(alpha · x + beta, 0, 1)."""
    close = {m: 1.0 if math.isclose(c, 1, rel_tol=functions.tolerance) else c for m, c in unit.items()}
    atom = functions.atom_of(close)
    if atom is None or atom.name != "clip" or atom.parameters != (0.0, 1.0):
        return None
    line = dict(atom.argument)
    slope = line.pop((0,), None)
    offset = line.pop((), 0.0)
    return None if line or slope is None else Activation("hard_sigmoid", slope, offset)


# The functions ------------------------------------------------------------------------------------------------------


def _sigmoid(functions: ScalarFunctions, x: Polynomial) -> Polynomial:
    return functions.apply("sigmoid", x)


def _tanh(functions: ScalarFunctions, x: Polynomial) -> Polynomial:
    return functions.apply("tanh", x)


def _relu(functions: ScalarFunctions, x: Polynomial) -> Polynomial:
    return functions.clip(x, 0.0, INFINITY)


def _silu(functions: ScalarFunctions, x: Polynomial) -> Polynomial:
    return functions.multiply(x, _sigmoid(functions, x))


def _gelu(functions: ScalarFunctions, x: Polynomial) -> Polynomial:
    """0.5 x (1 + erf(x / √2))."""
    gate = functions.add({(): 1.0}, functions.apply("erf", functions.scale(math.sqrt(0.5), x)))
    return functions.scale(0.5, functions.multiply(x, gate))


def _gelu_argument(functions: ScalarFunctions, x: Polynomial) -> Polynomial:
    """√(2 / π) (x + 0.044715 x³)."""
    cubic = functions.scale(0.044715, functions.multiply(x, x, x))
    return functions.scale(math.sqrt(2 / math.pi), functions.add(x, cubic))


def _gelu_tanh(functions: ScalarFunctions, x: Polynomial) -> Polynomial:
    gate = functions.add({(): 1.0}, _tanh(functions, _gelu_argument(functions, x)))
    return functions.scale(0.5, functions.multiply(x, gate))


def _gelu_sigmoid(functions: ScalarFunctions, x: Polynomial) -> Polynomial:
    """The same as `_gelu_tanh`, since 1 + tanh u = 2 sigmoid(2u)."""
    return functions.multiply(x, _sigmoid(functions, functions.scale(2, _gelu_argument(functions, x))))


def _hard_swish(functions: ScalarFunctions, x: Polynomial) -> Polynomial:
    line = functions.add(functions.scale(1 / 6, x), {(): 0.5})
    return functions.multiply(x, functions.clip(line, 0.0, 1.0))


_FIXED: tuple[tuple[str, Callable[[ScalarFunctions, Polynomial], Polynomial]], ...] = (
    ("relu", _relu),
    ("sigmoid", _sigmoid),
    ("tanh", _tanh),
    ("silu", _silu),
    ("gelu", _gelu),
    ("gelu_tanh", _gelu_tanh),
    ("gelu_tanh", _gelu_sigmoid),
    ("hard_swish", _hard_swish),
)


# The operators ------------------------------------------------------------------------------------------------------


def _unary(make: Callable[[ScalarFunctions, Polynomial], Polynomial]) -> Rule:
    def rule(functions: ScalarFunctions, inputs: Inputs, attrs: dict[str, Any]) -> Polynomial | None:
        x = inputs[0]
        return None if x is None or len(inputs) != 1 else make(functions, x)

    return rule


def _binary(make: Callable[[ScalarFunctions, Polynomial, Polynomial], Polynomial | None]) -> Rule:
    def rule(functions: ScalarFunctions, inputs: Inputs, attrs: dict[str, Any]) -> Polynomial | None:
        if len(inputs) != 2 or inputs[0] is None or inputs[1] is None:
            return None
        return make(functions, inputs[0], inputs[1])

    return rule


def _number(polynomial: Polynomial | None) -> float | None:
    """The constant that `polynomial` is."""
    if polynomial is None or not polynomial.keys() <= {()}:
        return None
    return polynomial.get((), 0.0)


def _divide(functions: ScalarFunctions, a: Polynomial, b: Polynomial) -> Polynomial | None:
    divisor = _number(b)
    return functions.scale(1 / divisor, a) if divisor else None


def _power(functions: ScalarFunctions, a: Polynomial, b: Polynomial) -> Polynomial | None:
    exponent = _number(b)
    return functions.multiply(*[a] * int(exponent)) if exponent in (1, 2, 3) else None


def _maximum(functions: ScalarFunctions, a: Polynomial, b: Polynomial) -> Polynomial | None:
    for x, bound in ((a, _number(b)), (b, _number(a))):
        if bound is not None:
            return functions.clip(x, bound, INFINITY)
    return None


def _minimum(functions: ScalarFunctions, a: Polynomial, b: Polynomial) -> Polynomial | None:
    for x, bound in ((a, _number(b)), (b, _number(a))):
        if bound is not None:
            return functions.clip(x, -INFINITY, bound)
    return None


def _clip(functions: ScalarFunctions, inputs: Inputs, attrs: dict[str, Any]) -> Polynomial | None:
    x, *bounds = [*inputs, None, None][:3]
    limits = [missing if b is None else _number(b) for b, missing in zip(bounds, (-INFINITY, INFINITY), strict=True)]
    if x is None or limits[0] is None or limits[1] is None or attrs:
        return None
    return functions.clip(x, limits[0], limits[1])


def _leaky_relu(functions: ScalarFunctions, inputs: Inputs, attrs: dict[str, Any]) -> Polynomial | None:
    x = inputs[0]
    return None if x is None else functions.apply("leaky_relu", x, float(attrs.get("alpha", 0.01)))


def _hard_sigmoid_operator(functions: ScalarFunctions, inputs: Inputs, attrs: dict[str, Any]) -> Polynomial | None:
    x = inputs[0]
    if x is None:
        return None
    line = functions.add(functions.scale(float(attrs.get("alpha", 0.2)), x), {(): float(attrs.get("beta", 0.5))})
    return functions.clip(line, 0.0, 1.0)


def _gelu_operator(functions: ScalarFunctions, inputs: Inputs, attrs: dict[str, Any]) -> Polynomial | None:
    make = {"none": _gelu, "tanh": _gelu_tanh}.get(attrs.get("approximate", "none"))
    x = inputs[0]
    return None if x is None or make is None or len(inputs) != 1 else make(functions, x)


def _quick_gelu(functions: ScalarFunctions, inputs: Inputs, attrs: dict[str, Any]) -> Polynomial | None:
    return _swish(functions, inputs, {"alpha": attrs.get("alpha", 1.702)})


def _swish(functions: ScalarFunctions, inputs: Inputs, attrs: dict[str, Any]) -> Polynomial | None:
    """x sigmoid(alpha x)."""
    x = inputs[0]
    if x is None:
        return None
    return functions.multiply(x, _sigmoid(functions, functions.scale(float(attrs.get("alpha", 1.0)), x)))


ELEMENTWISE: dict[tuple[str, str], Rule] = {
    ("", "Identity"): _unary(lambda functions, x: x),
    ("", "Neg"): _unary(lambda functions, x: functions.scale(-1, x)),
    ("", "Relu"): _unary(_relu),
    ("", "Sigmoid"): _unary(_sigmoid),
    ("", "Tanh"): _unary(_tanh),
    ("", "Erf"): _unary(lambda functions, x: functions.apply("erf", x)),
    ("", "HardSwish"): _unary(_hard_swish),
    ("", "Add"): _binary(lambda functions, a, b: functions.add(a, b)),
    ("", "Sub"): _binary(lambda functions, a, b: functions.add(a, functions.scale(-1, b))),
    ("", "Mul"): _binary(lambda functions, a, b: functions.multiply(a, b)),
    ("", "Div"): _binary(_divide),
    ("", "Pow"): _binary(_power),
    ("", "Max"): _binary(_maximum),
    ("", "Min"): _binary(_minimum),
    ("", "Clip"): _clip,
    ("", "LeakyRelu"): _leaky_relu,
    ("", "HardSigmoid"): _hard_sigmoid_operator,
    ("", "Gelu"): _gelu_operator,
    ("", "Swish"): _swish,
    ("com.microsoft", "Gelu"): _gelu_operator,
    ("com.microsoft", "QuickGelu"): _quick_gelu,
}
