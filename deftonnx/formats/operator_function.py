"""What the function bodies of our operators share.

A function cannot leave an input out, and some attributes decide which operators it has, so a model may need several
bodies of an operator. They are overloads of one name, which IR version 10 has for this: "1", "2", "3" … in the order of
the nodes. Nodes whose bodies are equal share one; numbers reach it as attributes. To the operator library all of them
are one operator: a name for each body would cost every session time (docs/kernels.md).

ONNX Runtime before 1.27 does not know overloads: without the library it would take the last body of a name for all of
its nodes, and compute nonsense. So the last one, which no node asks for, is a guard that cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from deftonnx.formats import get_format
from deftonnx.formats.activation import ACTIVATIONS, Nodes
from deftonnx.formats.packed import LAYOUT_VERSION, FormatError

DOMAIN = "ai.deftonnx"
OLDEST_OPSET = 13  # Cast of bfloat16
GUARD = "NeedsOnnxRuntime_1_27_or_the_operator_library"
"""The operator that nobody has: what ONNX Runtime says when it is missing."""
_IR_VERSION_WITH_FUNCTIONS = 8
_IR_VERSION_WITH_OVERLOADS = 10


def is_operator(domain: str | None, name: str, operator: str) -> bool:
    """Whether domain::name is `operator`."""
    return (domain, name) == (DOMAIN, operator)


def attach_functions(
    model: onnx.ModelProto,
    operator: str,
    body: Callable[[onnx.NodeProto, int], onnx.FunctionProto],
) -> onnx.ModelProto:
    """Give every `operator` node of `model` its function body, and the overload of that, in place; return `model`.

    body: the function of a node for the model's opset.
    The IR version rises to 8 where it was lower, to 10 where there are several bodies.
    """
    others = [f for f in model.functions if not is_operator(f.domain, f.name, operator)]
    del model.functions[:]
    model.functions.extend(others)
    nodes = [n for n in all_nodes(model.graph) if is_operator(n.domain, n.op_type, operator)]
    if not nodes:
        return model
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    users: dict[bytes, list[onnx.NodeProto]] = {}
    for node in nodes:
        users.setdefault(body(node, opset).SerializeToString(), []).append(node)
    bodies = [onnx.FunctionProto.FromString(serialized) for serialized in users]
    for number, (function, callers) in enumerate(zip(bodies, users.values(), strict=True), start=1):
        function.overload = str(number) if len(bodies) > 1 else ""
        for node in callers:
            node.overload = function.overload
    model.functions.extend(bodies)
    if len(bodies) > 1:
        model.functions.append(_guard(bodies, opset))
    if all(o.domain != DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    needed = _IR_VERSION_WITH_OVERLOADS if len(bodies) > 1 else _IR_VERSION_WITH_FUNCTIONS
    model.ir_version = max(model.ir_version, needed)
    return model


def _guard(bodies: Sequence[onnx.FunctionProto], opset: int) -> onnx.FunctionProto:
    """The body without an overload, for runtimes that do not know overloads: they refuse it."""
    longest = max(bodies, key=lambda function: len(function.input))
    nodes = [helper.make_node(GUARD, [], ["A"], domain=DOMAIN), output_cast()]
    guard = make_function(longest.name, longest.input, nodes, longest.attribute, opset)
    guard.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return guard


def make_function(
    operator: str,
    inputs: Sequence[str],
    nodes: Nodes,
    attributes: Sequence[str],
    opset: int,
    left_out: Collection[str] = (),
) -> onnx.FunctionProto:
    """The body `nodes`, from `inputs` to `Y`, without what it can do without: see _tidied.

    ONNX Runtime lists every type for an input that no operator it knows reads, which takes it longer than anything else
    that it does with a body when a session is made. So each is read, but those that the node leaves out.
    Raises FormatError for an opset under 13.
    """
    if opset < OLDEST_OPSET:
        raise FormatError(f"packed weights need ONNX opset {OLDEST_OPSET} or newer, the model has {opset}")
    tidied = _tidied(nodes)
    read = {name for node in tidied for name in node.input}.union(left_out)
    reads = [helper.make_node("Sign", [name], [f"{name}_sign"]) for name in inputs if name not in read]
    opsets = [helper.make_opsetid("", opset)]
    body = [*reads, *tidied]
    return helper.make_function(DOMAIN, operator, inputs, ["Y"], body, opsets, attributes=list(attributes))


def _tidied(nodes: Nodes) -> Nodes:
    """`nodes` without Identity, constants that are there already, and what Y does not need: every node takes time when
    a session is made."""
    same: dict[str, str] = {}
    constants: dict[bytes, str] = {}
    kept = []
    for node in nodes:
        names = [same.get(name, name) for name in node.input]
        del node.input[:]
        node.input.extend(names)
        if node.op_type == "Identity":
            same[node.output[0]] = node.input[0]
            continue
        if node.op_type == "Constant":
            value = node.attribute[0].SerializeToString()
            if value in constants:
                same[node.output[0]] = constants[value]
                continue
            constants[value] = node.output[0]
        kept.append(node)
    return _needed(kept)


def _needed(nodes: Nodes) -> Nodes:
    """Those of `nodes` that Y needs, which the last of them makes."""
    names, needed = {"Y"}, []
    for node in reversed(nodes):
        if not names.isdisjoint(node.output):
            names.update(node.input)
            needed.append(node)
    return needed[::-1]


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


def output_cast(source: str = "A") -> onnx.NodeProto:
    """From `source` to `Y`, whose type is the calling node's attribute `output_type`."""
    node = helper.make_node("Cast", [source], ["Y"])
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


def stated_integer(node: onnx.NodeProto, name: str) -> int:
    """The attribute `name` of `node`. Raises FormatError if it is missing."""
    for attribute in node.attribute:
        if attribute.name == name:
            return int(attribute.i)
    raise FormatError(f"node {node.name!r} ({node.op_type}) lacks the attribute {name!r}")


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of `graph` and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            subgraphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for subgraph in subgraphs:
                yield from all_nodes(subgraph)
