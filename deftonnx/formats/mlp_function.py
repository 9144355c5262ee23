"""``ai.deftonnx::DeftMlp`` and its ONNX function body: two or more DeftGemm nodes that follow each other, in one.

    Y = layer(… layer(layer(X))),   layer(X) = activation(X · (value(W)ᵀ * scale) + bias)

X, and what a layer makes for the next, is rounded to `element_type`; arithmetic is float32. A node costs a session some
microseconds whatever it computes, so few rows of small layers take less time in one.

Inputs
    X: (..., K), of element_type or float32.
    zero: a constant scalar 0 of Y's type, which ONNX Runtime takes that type from.
    W, scale, bias of the first layer, then of the second …, as DeftGemm takes them, all constant.
Output
    Y: (..., N), of element_type or float32.
Attributes
    element_type: TensorProto element type, float16 or bfloat16. output_type: that of Y.
    layout: how W is packed. widths: the features of X and those that each layer makes.
    formats, activations: a name for each layer, parted by spaces: ONNX Runtime's interface for operators has no lists
        of names.
    exponent_bits: of deft8:E, 0 for other formats; alphas, betas: of the activations; one for each layer.
    compute: "auto"; the name of the one CUDA kernel to use; or "layers", which multiplies the layers one by one.

The body is those of the layers' DeftGemm nodes, one behind the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import onnx
from onnx import helper

from deftonnx.formats import get_format
from deftonnx.formats.gemm_function import ANY_KERNEL, gemm_function
from deftonnx.formats.gemm_function import OPERATOR as GEMM
from deftonnx.formats.operator_function import DOMAIN, attach_functions, is_operator, make_function
from deftonnx.formats.packed import ROW_ALIGNMENT, FormatError

OPERATOR = "DeftMlp"
LEAST_LAYERS = 2
Input = TypeVar("Input")
X_AND_ZERO, CONSTANTS = ("X", "zero"), ("W", "scale", "bias")
"""The first inputs, and those of each layer behind them."""
_EXPONENT_BITS = "exponent_bits"
_ELEMENT_TYPE, _OUTPUT_TYPE = "element_type", "output_type"
_ATTRIBUTES = (
    _ELEMENT_TYPE,
    _OUTPUT_TYPE,
    "layout",
    "widths",
    "formats",
    _EXPONENT_BITS,
    "activations",
    "alphas",
    "betas",
    "compute",
)


def is_mlp(domain: str | None, operator: str) -> bool:
    """Whether domain::operator is DeftMlp."""
    return is_operator(domain, operator, OPERATOR)


def mlp_attributes(layers: Sequence[Mapping[str, Any]], compute: str = ANY_KERNEL) -> dict[str, Any]:
    """Return the attributes of the DeftMlp node of DeftGemm nodes with the attributes `layers`."""
    return {
        _ELEMENT_TYPE: layers[0][_OUTPUT_TYPE],
        _OUTPUT_TYPE: layers[-1][_OUTPUT_TYPE],
        "layout": layers[0]["layout"],
        "widths": [layers[0]["K"], *(layer["N"] for layer in layers)],
        "formats": " ".join(layer["format"] for layer in layers),
        _EXPONENT_BITS: [get_format(layer["format"]).numbers.get(_EXPONENT_BITS, 0) for layer in layers],
        "activations": " ".join(layer["activation"] for layer in layers),
        "alphas": [float(layer["alpha"]) for layer in layers],
        "betas": [float(layer["beta"]) for layer in layers],
        "compute": compute,
    }


def gemms_of(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the attributes of the DeftGemm nodes that a DeftMlp node with these `attributes` stands for.

    Raises FormatError where one is missing, or not of as many layers as another.
    """
    _check(attributes)
    widths = attributes["widths"]
    types = [attributes[_ELEMENT_TYPE]] * (len(widths) - 2) + [attributes[_OUTPUT_TYPE]]
    names = zip(attributes["formats"].split(), attributes["activations"].split(), strict=True)
    numbers = zip(widths[:-1], widths[1:], attributes["alphas"], attributes["betas"], types, strict=True)
    return [
        {
            "format": name,
            "layout": attributes["layout"],
            "features": K,
            "K": K,
            "N": N,
            "block": 0,
            "activation": activation,
            "alpha": alpha,
            "beta": beta,
            _OUTPUT_TYPE: output_type,
            "compute": attributes["compute"],
        }
        for (name, activation), (K, N, alpha, beta, output_type) in zip(names, numbers, strict=True)
    ]


def _check(attributes: Mapping[str, Any]) -> None:
    missing = next((name for name in _ATTRIBUTES if attributes.get(name) in (None, [])), None)
    if missing is not None:
        raise FormatError(f"a DeftMlp node lacks the attribute '{missing}'")
    layers = len(attributes["widths"]) - 1
    values = {name: attributes[name] for name in ("alphas", "betas")}
    values |= {name: attributes[name].split() for name in ("formats", "activations")}
    wrong = next((name for name, of_layers in values.items() if len(of_layers) != layers), None)
    if wrong is not None:
        raise FormatError(f"a DeftMlp node has {layers} layers by 'widths', {len(values[wrong])} by '{wrong}'")


def layer_inputs(inputs: Sequence[Input]) -> list[Sequence[Input]]:
    """The constants of each layer among the inputs of a DeftMlp node."""
    behind = inputs[len(X_AND_ZERO) :]
    return [behind[i : i + len(CONSTANTS)] for i in range(0, len(behind), len(CONSTANTS))]


def mlp_node(
    inputs: Sequence[str],
    output: str,
    layers: Sequence[Mapping[str, Any]],
    *,
    name: str = "",
    compute: str = ANY_KERNEL,
) -> onnx.NodeProto:
    """Return a DeftMlp node of DeftGemm nodes with the attributes `layers`; `inputs` name X, zero and the rest."""
    return helper.make_node(OPERATOR, inputs, [output], name=name, domain=DOMAIN, **mlp_attributes(layers, compute))


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a DeftMlp node by name, texts as str."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def attach_mlp_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every DeftMlp node of `model` its function body in place; return `model`.

    Raises FormatError for an opset under 13 and an unknown format or activation.
    """
    return attach_functions(model, OPERATOR, _function)


def _function(node: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    attributes = attributes_of(node)
    layers = gemms_of(attributes)
    nodes = [helper.make_node("Cast", ["X"], ["X_0"], to=attributes[_ELEMENT_TYPE])]
    for i, layer in enumerate(layers):
        gemm = helper.make_node(GEMM, ["X", *CONSTANTS], ["Y"], name=node.name, domain=DOMAIN, **layer)
        y = "Y" if i + 1 == len(layers) else f"X_{i + 1}"
        nodes += _inlined(gemm_function(gemm, opset, padded=layer["K"] % ROW_ALIGNMENT != 0), gemm, y, i)
    constants = [f"{name}_{i}" for i in range(len(layers)) for name in CONSTANTS]
    return make_function(OPERATOR, [*X_AND_ZERO, *constants], nodes, _ATTRIBUTES, opset)


def _inlined(function: onnx.FunctionProto, caller: onnx.NodeProto, y: str, layer: int) -> list[onnx.NodeProto]:
    """The nodes of `function` with the values of the caller's attributes. `layer` tells its names apart; its output is
    called `y`."""
    given = {a.name: helper.get_attribute_value(a) for a in caller.attribute}
    nodes = []
    for inner in function.node:
        node = onnx.NodeProto()
        node.CopyFrom(inner)
        for names in (node.input, node.output):
            names[:] = [y if name == "Y" else f"{name}_{layer}" for name in names]
        del node.attribute[:]
        for attribute in inner.attribute:
            if reference := attribute.ref_attr_name:
                attribute = helper.make_attribute(attribute.name, given[reference], attr_type=attribute.type)
            node.attribute.append(attribute)
        nodes.append(node)
    return nodes
