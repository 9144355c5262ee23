"""The DeftGemm nodes of a model: how many rows each gets, and the kernel that would serve it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from deftonnx.errors import UnsupportedError
from deftonnx.formats.conv_function import is_conv
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.model_file import bodies
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.kernel_choice import kernels_for

TYPE_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


@dataclass(frozen=True)
class GemmNode:
    """One node: rows M of X at the asked batch (None if the shapes do not say), and the kernel or why there is none."""

    name: str
    format: str
    x_type: str
    M: int | None
    K: int
    N: int
    kernel: str | None
    reason: str | None


def gemm_nodes(
    model: onnx.ModelProto, batch: int | None, sizes: Mapping[str, int], device: Device | None, library: str | None
) -> list[GemmNode]:
    """Return the DeftGemm nodes of `model`, those in bodies of If, Loop and Scan included.

    `batch` and `sizes` are the lengths of free axes of the inputs, as in made_up_inputs. Without a device or a library
    there are no kernels.
    """
    shapes = inferred(model, batch, sizes)
    weights = {t.name: t.data_type for graph in bodies(model.graph) for t in graph.initializer}
    found = []
    for graph in bodies(model.graph):
        for node in graph.node:
            if is_gemm(node.domain, node.op_type):
                found.append(_describe(node, shapes, weights, device, library))
    return found


def _describe(
    node: onnx.NodeProto,
    shapes: Mapping[str, onnx.TypeProto.Tensor],
    weights: Mapping[str, int],
    device: Device | None,
    library: str | None,
) -> GemmNode:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    x = shapes.get(node.input[0])
    M = None if x is None else _rows(x)
    x_type = TensorProto.FLOAT if x is None else x.elem_type
    kernel = reason = None
    if library is None:
        reason = "the operator library was not built"
    elif device is None:
        reason = "no GPU"
    elif M is None:
        reason = "the number of rows is not known: give --batch and --dim"
    elif M == 0:
        reason = "no rows"
    else:
        try:
            candidates = kernels_for(node, x_type, weights.get(node.input[1], 0), [M], device, library)
            kernel = candidates[0].kernel if candidates else None
            reason = None if candidates else f"no kernel takes {M} rows"
        except UnsupportedError as error:
            reason = str(error)
    return GemmNode(
        name=node.name or node.output[0],
        format=attributes.get("format", b"").decode(errors="replace"),
        x_type=TYPE_NAMES.get(x_type, str(x_type)),
        M=M,
        K=attributes.get("K", 0),
        N=attributes.get("N", 0),
        kernel=kernel,
        reason=reason,
    )


def _rows(x: onnx.TypeProto.Tensor) -> int | None:
    if not x.HasField("shape") or len(x.shape.dim) == 0:
        return None
    leading = x.shape.dim[:-1]
    return math.prod(d.dim_value for d in leading) if all(d.HasField("dim_value") for d in leading) else None


def inferred(model: onnx.ModelProto, batch: int | None, sizes: Mapping[str, int]) -> dict[str, onnx.TypeProto.Tensor]:
    """The types and shapes of all tensors, by name, with the inputs' free axes filled in.

    Shape inference does not see through what bodies of packed operators compute shapes with: a MatMul stands in for
    DeftGemm, a Conv between transposes for DeftConv.
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
    values = [
        v
        for g in bodies(inferred.graph)
        for v in (*g.input, *g.value_info, *g.output)
        if v.type.HasField("tensor_type")
    ]
    return {v.name: v.type.tensor_type for v in values}


def _stand_ins(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Standard nodes whose output has the type and shape of the node's; their weights become inputs of the model."""
    if is_conv(node.domain, node.op_type):
        return _transposed_conv(model, node)
    if not is_gemm(node.domain, node.op_type):
        return [node]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weight = f"{node.output[0]} of a MatMul of that shape"
    shape = (attributes.get("features", 1), attributes.get("N", 1))
    model.graph.input.append(helper.make_tensor_value_info(weight, TensorProto.FLOAT, shape))
    return [helper.make_node("MatMul", [node.input[0], weight], [node.output[0]], name=node.name)]


def _transposed_conv(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
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
