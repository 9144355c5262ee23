"""The DeftConv nodes of a model: the images each gets, and the kernels among which the first run chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import onnx
from onnx import TensorProto

from deftonnx.errors import UnsupportedError
from deftonnx.formats.conv_function import is_conv
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.kernel_choice import conv_kernels_for
from deftonnx.runtime.packed_nodes import PackedNode, common_facts, describe_nodes, obstacle


@dataclass(frozen=True)
class ConvNode(PackedNode):
    """One node: batch, rows and columns of X (None if the shapes do not say), the candidates or why there are none."""

    image: tuple[int, int, int] | None
    kernels: list[str]
    reason: str | None


def conv_nodes(
    model: onnx.ModelProto, batch: int | None, sizes: Mapping[str, int], device: Device | None, library: str | None
) -> list[ConvNode]:
    """Return the DeftConv nodes of `model`, those in bodies of If, Loop and Scan included; arguments as gemm_nodes."""
    return describe_nodes(model, is_conv, batch, sizes, partial(_describe, device=device, library=library))


def _describe(
    node: onnx.NodeProto, x: onnx.TypeProto.Tensor | None, weight_type: int, device: Device | None, library: str | None
) -> ConvNode:
    x_type = TensorProto.FLOAT if x is None else x.elem_type
    image = None if x is None else _image(x)
    kernels: list[str] = []
    reason = obstacle(device, library)
    if device is None or library is None:
        pass
    elif image is None:
        reason = "the size of X is not known: give --batch and --dim"
    else:
        try:
            found = conv_kernels_for(node, x_type, weight_type, image, device, library)
            kernels = list(dict.fromkeys(kernel for kernel, _ in found))
            reason = None if kernels else "no kernel takes such images"
        except UnsupportedError as error:
            reason = str(error)
    return ConvNode(**common_facts(node, x_type), image=image, kernels=kernels, reason=reason)


def _image(x: onnx.TypeProto.Tensor) -> tuple[int, int, int] | None:
    """Batch, rows and columns; a one-dimensional image has one row."""
    leading = x.shape.dim[:-1] if x.HasField("shape") else []
    if len(leading) not in (2, 3) or not all(d.HasField("dim_value") for d in leading):
        return None
    batch, *rows, columns = (d.dim_value for d in leading)
    return batch, (rows[0] if rows else 1), columns
