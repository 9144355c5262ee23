"""Layer normalisation that is written out becomes one LayerNormalization.

Before opset 17 exporters write (x − mean) / √(mean((x − mean)²) + epsilon) · scale + bias, with Pow or Mul for the
square and Div, or Mul by a Reciprocal, for the division. In 16 bits the square would overflow and epsilon vanish; the
operator computes in float32. A model of an older opset carries it as a function of ours that stays in float32
(formats/layer_norm_function.py), where it does not become a SkipLayerNormalization.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from deftonnx.formats.layer_norm_function import OPERATOR, STANDARD_OPSET
from deftonnx.formats.operator_function import DOMAIN
from deftonnx.layers.linear import Array, is_standard, unused_name
from deftonnx.rewrite.absorb.parameters import integers
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.reserved import Reserved

_OLDEST_FUNCTION = 13
"""The oldest opset whose nodes the function's body is made of."""


@dataclass
class _Norm:
    """`x` is normalised along its last axis, F numbers, to `y`."""

    x: gs.Tensor
    y: gs.Tensor
    epsilon: float
    scale: Array  # (F,)
    bias: Array  # (F,)


def fuse_layer_norms(graph: gs.Graph) -> bool:
    """Rewrite in place where shapes are known; True if anything changed."""
    if graph.opset < _OLDEST_FUNCTION:
        return False
    reserved = Reserved(graph)
    found = [norm for node in graph.nodes if (norm := _match(node, reserved)) is not None]
    for norm in found:
        norm.y.inputs.clear()
        name = unused_name(f"{norm.y.name}/layer_norm")
        constants = [gs.Constant(f"{name}/{part}", getattr(norm, part)) for part in ("scale", "bias")]
        own = graph.opset < STANDARD_OPSET
        attributes = {"epsilon": norm.epsilon} if own else {"axis": -1, "epsilon": norm.epsilon}
        inputs, domain = [norm.x, *constants], DOMAIN if own else None
        graph.nodes.append(gs.Node(OPERATOR, name, attributes, inputs, [norm.y], domain=domain))
    if found:
        _import_domain(graph)
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return bool(found)


def _import_domain(graph: gs.Graph) -> None:
    domains = list(graph.import_domains or [])
    if graph.opset < STANDARD_OPSET and all(domain.domain != DOMAIN for domain in domains):
        graph.import_domains = [*domains, onnx.helper.make_opsetid(DOMAIN, 1)]


def _match(node: gs.Node, reserved: Reserved) -> _Norm | None:
    """The normalisation whose division `node` is, with the scale and the bias behind it."""
    if not is_standard(node) or (ends := quotient(node)) is None:
        return None
    centred, root = ends
    shifted = sum_with_number(root)
    centre = _centre(centred)
    if shifted is None or centre is None:
        return None
    variance, epsilon = shifted
    square = mean_of(variance)
    if square is None or not _is_square(square, centre):
        return None
    x = centre
    if x.dtype != np.float32 or x.shape is None or not isinstance(x.shape[-1], int):
        return None
    F = x.shape[-1]
    y, scale = _times_or_plus(node.outputs[0], "Mul", F, reserved) or (node.outputs[0], np.ones(F, np.float32))
    y, bias = _times_or_plus(y, "Add", F, reserved) or (y, np.zeros(F, np.float32))
    return _Norm(x, y, epsilon, scale, bias)


def quotient(node: gs.Node) -> tuple[gs.Tensor, gs.Tensor] | None:
    """a and b where `node` makes a / √b."""
    if node.op == "Div":
        root = maker(node.inputs[1], "Sqrt")
        return None if root is None else (node.inputs[0], root.inputs[0])
    if node.op != "Mul":
        return None
    for tensor, other in (node.inputs, list(node.inputs)[::-1]):
        root = _inverse(tensor)
        if root is not None:
            return other, root.inputs[0]
    return None


def _inverse(tensor: gs.Tensor) -> gs.Node | None:
    """The Sqrt whose reciprocal `tensor` is."""
    if (reciprocal := maker(tensor, "Reciprocal")) is not None:
        return maker(reciprocal.inputs[0], "Sqrt")
    division = maker(tensor, "Div")
    return None if division is None or number_of(division.inputs[0]) != 1 else maker(division.inputs[1], "Sqrt")


def sum_with_number(tensor: gs.Tensor) -> tuple[gs.Tensor, float] | None:
    """A tensor and a number whose sum `tensor` is."""
    node = maker(tensor, "Add")
    if node is None:
        return None
    numbers = [number_of(t) for t in node.inputs]
    if numbers.count(None) != 1:
        return None
    at = numbers.index(None)
    number = numbers[1 - at]
    return None if number is None else (node.inputs[at], number)


def _centre(tensor: gs.Tensor) -> gs.Tensor | None:
    """x where `tensor` is x − mean(x) along the last axis."""
    node = maker(tensor, "Sub")
    mean = None if node is None else mean_of(node.inputs[1])
    return None if node is None or mean is not node.inputs[0] else mean


def mean_of(tensor: gs.Tensor) -> gs.Tensor | None:
    """What `tensor` is the mean of, along the last axis."""
    node = maker(tensor, "ReduceMean")
    if node is None or not node.attrs.get("keepdims", 1) or node.inputs[0].shape is None:
        return None
    axes = integers(node, "axes", 1)
    rank = len(node.inputs[0].shape)
    return node.inputs[0] if axes is not None and [axis % rank for axis in axes] == [rank - 1] else None


def _is_square(tensor: gs.Tensor, x: gs.Tensor) -> bool:
    """True where `tensor` is (x − mean(x))², of one difference or of two equal ones."""
    power = maker(tensor, "Pow")
    if power is not None:
        return number_of(power.inputs[1]) == 2 and _centre(power.inputs[0]) is x
    product = maker(tensor, "Mul")
    return product is not None and all(_centre(t) is x for t in product.inputs)


def _times_or_plus(tensor: gs.Tensor, op: str, F: int, reserved: Reserved) -> tuple[gs.Tensor, Array] | None:
    """The only reader of `tensor` if it multiplies with or adds a constant along the last axis: its output and that."""
    users = tensor.outputs
    if len(users) != 1 or users[0].op != op or not is_standard(users[0]) or tensor in reserved:
        return None
    others = [t for t in users[0].inputs if t is not tensor]
    if len(others) != 1 or not isinstance(others[0], gs.Constant):
        return None
    values = others[0].values
    if (
        values.size not in (1, F)
        or values.ndim > len(tensor.shape or ())
        or (values.size > 1 and values.shape[-1] != F)
    ):
        return None
    return users[0].outputs[0], np.broadcast_to(values.reshape(-1), (F,)).astype(np.float32)


def maker(tensor: gs.Tensor, op: str) -> gs.Node | None:
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    return node if node is not None and node.op == op and is_standard(node) else None


def number_of(tensor: gs.Tensor) -> float | None:
    """The number that a constant of one element is."""
    if not isinstance(tensor, gs.Constant) or int(np.prod(tensor.shape)) != 1:
        return None
    return float(tensor.values.reshape(()))
