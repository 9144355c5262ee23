"""The DeftConv nodes of a model: the images each gets, and the kernels among which the first run chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from deftonnx.errors import UnsupportedError
from deftonnx.formats.conv_function import is_conv
from deftonnx.model_file import bodies
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.gemm_nodes import TYPE_NAMES, inferred
from deftonnx.runtime.kernel_choice import conv_kernels_for


@dataclass(frozen=True)
class ConvNode:
    """One node: batch, rows and columns of X (None if the shapes do not say), the candidates or why there are none."""

    name: str
    format: str
    x_type: str
    image: tuple[int, int, int] | None
    K: int
    N: int
    kernels: list[str]
    reason: str | None


def conv_nodes(
    model: onnx.ModelProto, batch: int | None, sizes: Mapping[str, int], device: Device | None, library: str | None
) -> list[ConvNode]:
    """Return the DeftConv nodes of `model`, those in bodies of If, Loop and Scan included; arguments as gemm_nodes."""
    nodes = [node for graph in bodies(model.graph) for node in graph.node if is_conv(node.domain, node.op_type)]
    if not nodes:
        return []
    shapes = inferred(model, batch, sizes)
    weights = {t.name: t.data_type for graph in bodies(model.graph) for t in graph.initializer}
    return [_describe(node, shapes, weights, device, library) for node in nodes]


def _describe(
    node: onnx.NodeProto,
    shapes: Mapping[str, onnx.TypeProto.Tensor],
    weights: Mapping[str, int],
    device: Device | None,
    library: str | None,
) -> ConvNode:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    x = shapes.get(node.input[0])
    x_type = TensorProto.FLOAT if x is None else x.elem_type
    image = None if x is None else _image(x)
    kernels: list[str] = []
    reason = None
    if library is None:
        reason = "the operator library was not built"
    elif device is None:
        reason = "no GPU"
    elif image is None:
        reason = "the size of X is not known: give --batch and --dim"
    else:
        try:
            found = conv_kernels_for(node, x_type, weights.get(node.input[1], 0), image, device, library)
            kernels = list(dict.fromkeys(kernel for kernel, _ in found))
            reason = None if kernels else "no kernel takes such images"
        except UnsupportedError as error:
            reason = str(error)
    return ConvNode(
        name=node.name or node.output[0],
        format=attributes.get("format", b"").decode(errors="replace"),
        x_type=TYPE_NAMES.get(x_type, str(x_type)),
        image=image,
        K=attributes.get("K", 0),
        N=attributes.get("N", 0),
        kernels=kernels,
        reason=reason,
    )


def _image(x: onnx.TypeProto.Tensor) -> tuple[int, int, int] | None:
    """Batch, rows and columns; a one-dimensional image has one row."""
    leading = x.shape.dim[:-1] if x.HasField("shape") else []
    if len(leading) not in (2, 3) or not all(d.HasField("dim_value") for d in leading):
        return None
    batch, *rows, columns = (d.dim_value for d in leading)
    return batch, (rows[0] if rows else 1), columns
