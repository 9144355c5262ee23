"""What the function bodies of our operators share.

A function cannot leave an input out, and some attributes decide which operators it has, so a model may need several
bodies of an operator, each under a name: DeftGemm, DeftGemm_2, DeftGemm_3 … in the order of the nodes. Nodes whose
bodies are equal share one; numbers reach it as attributes. To the operator library all these names are one operator,
but each costs every session some time (docs/kernels.md), so there are few. (Overloads, which IR version 10 has for
this, would not do: ONNX Runtime before 1.28 takes one body for all of them, and computes nonsense.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from deftonnx.formats import get_format
from deftonnx.formats.activation import ACTIVATIONS, Nodes
from deftonnx.formats.packed import LAYOUT_VERSION, FormatError

DOMAIN = "ai.deftonnx"
OLDEST_OPSET = 13  # Cast of bfloat16
MOST_BODIES = {"DeftGemm": 12, "DeftConv": 12, "DeftPool": 14, "DeftChannelsLast": 2, "DeftAttention": 2}
"""Names of each operator that the library knows: custom_ops/runtime/packed_op.cpp, pool_op.cpp and so on."""
_IR_VERSION_WITH_FUNCTIONS = 8


def base_name(operator: str) -> str:
    """The operator, DeftGemm say, for the numbered names of their bodies, and any other operator's own name."""
    head, _, number = operator.partition("_")
    return head if head in MOST_BODIES and number.isdecimal() else operator


def is_operator(domain: str | None, name: str, operator: str) -> bool:
    """Whether domain::name is `operator`, under any of the names that its bodies have."""
    return domain == DOMAIN and base_name(name) == operator


def attach_functions(
    model: onnx.ModelProto,
    operator: str,
    body: Callable[[onnx.NodeProto, int], onnx.FunctionProto],
) -> onnx.ModelProto:
    """Give every `operator` node of `model` its function body, and the name of that, in place; return `model`.

    body: the function of a node for the model's opset, named after the operator.
    The IR version rises to 8 where it was lower. The library knows MOST_BODIES names: those of the bodies that most
    nodes have. Where there are more, nodes of the others run their body.
    """
    nodes = [n for n in _all_nodes(model.graph) if is_operator(n.domain, n.op_type, operator)]
    if not nodes:
        return model
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    users: dict[bytes, list[onnx.NodeProto]] = {}
    for node in nodes:
        users.setdefault(body(node, opset).SerializeToString(), []).append(node)
    functions = [f for f in model.functions if not is_operator(f.domain, f.name, operator)]
    for number, serialized in enumerate(sorted(users, key=lambda one: -len(users[one])), start=1):
        function = onnx.FunctionProto.FromString(serialized)
        function.name = operator if number == 1 else f"{operator}_{number}"
        functions.append(function)
        for node in users[serialized]:
            node.op_type = function.name
            node.ClearField("overload")
    del model.functions[:]
    model.functions.extend(functions)
    if all(o.domain != DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    model.ir_version = max(model.ir_version, _IR_VERSION_WITH_FUNCTIONS)
    return model


def make_function(
    operator: str, inputs: Sequence[str], nodes: Nodes, attributes: Sequence[str], opset: int
) -> onnx.FunctionProto:
    """The body `nodes`, from `inputs` to `Y`. Raises FormatError for an opset under 13."""
    if opset < OLDEST_OPSET:
        raise FormatError(f"packed weights need ONNX opset {OLDEST_OPSET} or newer, the model has {opset}")
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, operator, inputs, ["Y"], nodes, opsets, attributes=list(attributes))


def decode_nodes(node: onnx.NodeProto, opset: int) -> Nodes:
    """From the codes `W` of `node` to their float32 values `W_values`.

    `node` gets the numbers of its format as attributes: nodes that differ in them alone share a body.
    Raises FormatError for an unknown format or layout version.
    """
    layout = next((a.i for a in node.attribute if a.name == "layout"), 0)
    if layout != LAYOUT_VERSION:
        raise FormatError(f"node {node.name!r} ({node.op_type}) has layout version {layout}, known is {LAYOUT_VERSION}")
    packing = get_format(string_attribute(node, "format"))
    others = [a for a in node.attribute if a.name not in packing.numbers]
    del node.attribute[:]
    node.attribute.extend([*others, *(helper.make_attribute(name, value) for name, value in packing.numbers.items())])
    return [*(integer_attribute(name, name) for name in packing.numbers), *packing.decode_nodes(opset)]


def activation_nodes(name: str) -> Nodes:
    """From `Z` to `A`. Raises FormatError for an activation that is unknown."""
    if name not in ACTIVATIONS:
        raise FormatError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def residual_nodes(source: str, *, present: bool) -> Nodes:
    """From `source` to `Z`, the input `residual` added if there is one."""
    if not present:
        return [helper.make_node("Identity", [source], ["Z"])]
    return [
        helper.make_node("Cast", ["residual"], ["residual_float"], to=TensorProto.FLOAT),
        helper.make_node("Add", [source, "residual_float"], ["Z"]),
    ]


def output_cast() -> onnx.NodeProto:
    """From `A` to `Y`, whose type is the calling node's attribute `output_type`."""
    node = helper.make_node("Cast", ["A"], ["Y"])
    node.attribute.append(onnx.AttributeProto(name="to", ref_attr_name="output_type", type=onnx.AttributeProto.INT))
    return node


def integer_attribute(name: str, output: str) -> onnx.NodeProto:
    """A constant int64 scalar, the calling node's attribute `name`."""
    node = helper.make_node("Constant", [], [output])
    node.attribute.append(onnx.AttributeProto(name="value_int", ref_attr_name=name, type=onnx.AttributeProto.INT))
    return node


def integers_attribute(name: str, output: str) -> onnx.NodeProto:
    """A constant int64 vector, the calling node's attribute `name`."""
    node = helper.make_node("Constant", [], [output])
    node.attribute.append(onnx.AttributeProto(name="value_ints", ref_attr_name=name, type=onnx.AttributeProto.INTS))
    return node


def integers(output: str, values: Sequence[int]) -> onnx.NodeProto:
    """A constant int64 vector."""
    return helper.make_node("Constant", [], [output], value_ints=np.array(values, np.int64))


def keeps_blocks(node: onnx.NodeProto) -> bool:
    """Whether `node` multiplies kept blocks of its input features alone."""
    return any(a.name == "block" and a.i > 0 for a in node.attribute)


def string_attribute(node: onnx.NodeProto, name: str) -> str:
    """The attribute `name` of `node`. Raises FormatError if it is missing."""
    for attribute in node.attribute:
        if attribute.name == name:
            return str(attribute.s.decode())
    raise FormatError(f"node {node.name!r} ({node.op_type}) lacks the attribute {name!r}")


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of `graph` and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            subgraphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for subgraph in subgraphs:
                yield from _all_nodes(subgraph)
