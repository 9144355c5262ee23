"""What the listings of DeftGemm, DeftConv and DeftMlp nodes share: which nodes, what they say of themselves, and the
shapes of what they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx
from onnx import AttributeProto, TensorProto, helper

from deftonnx.errors import UnsupportedError
from deftonnx.formats.conv_function import is_conv
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.formats.mlp_function import is_mlp
from deftonnx.model_file import bodies
from deftonnx.runtime.cuda import Device

Described = TypeVar("Described")
TYPE_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
_MLP_KINDS = {
    "widths": AttributeProto.INTS,
    **dict.fromkeys(("formats", "activations"), AttributeProto.STRING),
    **dict.fromkeys(("element_type", "output_type"), AttributeProto.INT),
}
_KINDS = {"format": AttributeProto.STRING, "K": AttributeProto.INT, "N": AttributeProto.INT}
_GEMM_KINDS = {**_KINDS, "features": AttributeProto.INT}
_CONV_KINDS = {
    **_KINDS,
    **dict.fromkeys(("channels", "group"), AttributeProto.INT),
    **dict.fromkeys(("kernel_shape", "strides", "pads", "dilations"), AttributeProto.INTS),
}


@dataclass(frozen=True)
class PackedNode:
    """A node whose weight is packed, (K, N)."""

    name: str
    format: str
    x_type: str
    K: int
    N: int


def describe_nodes(
    model: onnx.ModelProto,
    belongs: Callable[[str, str], bool],
    batch: int | None,
    sizes: Mapping[str, int],
    describe: Callable[[onnx.NodeProto, onnx.TypeProto.Tensor | None, int], Described],
) -> list[Described]:
    """What `describe(node, X, type of W)` makes of the nodes of which `belongs(domain, op_type)` says so, those in
    bodies of If, Loop and Scan included. X has its shape as far as lengths of axes are known; None: nothing is.

    Raises UnsupportedError for a DeftGemm, DeftConv or DeftMlp that lacks X, W or Y, or what says its sizes.
    """
    nodes = [node for graph in bodies(model.graph) for node in graph.node]
    for node in nodes:
        lacking = _lacking(node)
        if lacking is not None:
            raise UnsupportedError(f"{node.op_type} node '{node.name}' is damaged: it lacks {lacking}")
    found = [node for node in nodes if belongs(node.domain, node.op_type)]
    if not found:
        return []
    shapes = inferred(model, batch, sizes)
    weights = {t.name: t.data_type for graph in bodies(model.graph) for t in graph.initializer}
    return [describe(node, shapes.get(node.input[0]), weights.get(node.input[1], 0)) for node in found]


def _lacking(node: onnx.NodeProto) -> str | None:
    operators = ((is_gemm, _GEMM_KINDS), (is_conv, _CONV_KINDS), (is_mlp, _MLP_KINDS))
    kinds = next((kinds for belongs, kinds in operators if belongs(node.domain, node.op_type)), None)
    if kinds is None:
        return None
    if len(node.input) < 2 or not node.output:
        return "inputs or an output"
    there = {a.name: a.type for a in node.attribute if a.type != AttributeProto.INTS or a.ints}
    return next((f"the attribute '{name}'" for name, kind in kinds.items() if there.get(name) != kind), None)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def common_facts(node: onnx.NodeProto, x_type: int) -> dict[str, Any]:
    """The fields of PackedNode."""
    attributes = attributes_of(node)
    return {
        "name": node.name or node.output[0],
        "format": attributes["format"].decode(errors="replace"),
        "x_type": TYPE_NAMES.get(x_type, str(x_type)),
        "K": attributes["K"],
        "N": attributes["N"],
    }


def obstacle(device: Device | None, library: str | None) -> str | None:
    """Why no kernel can be named, whatever the node."""
    if library is None:
        return "the operator library was not built"
    return "no GPU" if device is None else None


def inferred(model: onnx.ModelProto, batch: int | None, sizes: Mapping[str, int]) -> dict[str, onnx.TypeProto.Tensor]:
    """The types and shapes of all tensors, by name, with the inputs' free axes filled in.

    Shape inference does not see through what bodies of packed operators compute shapes with: a MatMul stands in for
    DeftGemm and DeftMlp, a Conv between transposes for DeftConv.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for graph in bodies(copy.graph):
        del graph.value_info[:]
        nodes = [stand_in for node in graph.node for stand_in in _stand_ins(copy, node)]
        del graph.node[:]
        graph.node.extend(nodes)
    for value in copy.graph.input:
        for axis, d in enumerate(value.type.tensor_type.shape.dim):
            if d.HasField("dim_value"):
                continue
            length = sizes.get(d.dim_param, (batch or 1) if axis == 0 else None)
            if length is not None:
                d.dim_value = length
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:  # a model too odd or too large to infer: M stays unknown
        inferred = copy
    return _tensor_types(inferred)


def known_shapes(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """The types and shapes of tensors, by name, as far as ONNX Runtime knows them when it makes a session.

    It knows nothing behind the library's operators.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.functions[:]
    try:
        return _tensor_types(onnx.shape_inference.infer_shapes(copy))
    except Exception:  # a model too odd or too large to infer
        return _tensor_types(copy)


def _tensor_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    values = [
        v for g in bodies(model.graph) for v in (*g.input, *g.value_info, *g.output) if v.type.HasField("tensor_type")
    ]
    return {v.name: v.type.tensor_type for v in values}


def _stand_ins(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Standard nodes whose output has the type and shape of the node's; their weights become inputs of the model."""
    if is_conv(node.domain, node.op_type):
        return _transposed_conv(model, node)
    attributes = attributes_of(node)
    if is_mlp(node.domain, node.op_type):
        x, y = f"{node.output[0]} of a Cast", f"{node.output[0]} of a MatMul"
        ends = (attributes["widths"][0], attributes["widths"][-1])
        return [
            helper.make_node("Cast", [node.input[0]], [x], to=attributes["element_type"]),
            _product(model, x, y, ends, attributes["element_type"], node.name),
            helper.make_node("Cast", [y], [node.output[0]], to=attributes["output_type"]),
        ]
    if not is_gemm(node.domain, node.op_type):
        return [node]
    ends = (attributes["features"], attributes["N"])
    return [_product(model, node.input[0], node.output[0], ends, TensorProto.FLOAT, node.name)]


def _product(
    model: onnx.ModelProto, x: str, y: str, shape: tuple[int, int], element_type: int, name: str
) -> onnx.NodeProto:
    weight = f"{y} of a MatMul of that shape"
    model.graph.input.append(helper.make_tensor_value_info(weight, element_type, shape))
    return helper.make_node("MatMul", [x, weight], [y], name=name)


def _transposed_conv(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    attributes = attributes_of(node)
    window = {name: attributes[name] for name in ("kernel_shape", "strides", "pads", "dilations", "group")}
    axes = range(1, 1 + len(window["kernel_shape"]))
    shape = (attributes["N"], attributes["channels"] // window["group"], *window["kernel_shape"])
    x, weight, y = (f"{node.output[0]} of a Conv's {part}" for part in ("X", "W", "Y"))
    model.graph.input.append(helper.make_tensor_value_info(weight, TensorProto.FLOAT, shape))
    last = len(axes) + 1
    return [
        helper.make_node("Transpose", [node.input[0]], [x], perm=[0, last, *axes]),
        helper.make_node("Conv", [x, weight], [y], name=node.name, **window),
        helper.make_node("Transpose", [y], [node.output[0]], perm=[0, *(axis + 1 for axis in axes), 1]),
    ]
