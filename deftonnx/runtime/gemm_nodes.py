"""The DeftGemm nodes of a model: how many rows each gets, and the kernel that would serve it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import partial

import onnx
from onnx import TensorProto

from deftonnx.errors import UnsupportedError
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.model_file import bodies
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.kernel_choice import kernels_for
from deftonnx.runtime.packed_nodes import PackedNode, common_facts, describe_nodes, known_shapes, obstacle

_RESIDUAL = 5  # among the inputs of DeftGemm


@dataclass(frozen=True)
class GemmNode(PackedNode):
    """One node: rows M of X at the asked batch (None if the shapes do not say), and the kernel or why there is none."""

    M: int | None
    kernel: str | None
    reason: str | None


def gemm_nodes(
    model: onnx.ModelProto, batch: int | None, sizes: Mapping[str, int], device: Device | None, library: str | None
) -> list[GemmNode]:
    """Return the DeftGemm nodes of `model`, those in bodies of If, Loop and Scan included.

    `batch` and `sizes` are the lengths of free axes of the inputs, as in made_up_inputs. Without a device or a library
    there are no kernels. Raises UnsupportedError for a damaged node.
    """
    constants = {tensor.name for graph in bodies(model.graph) for tensor in graph.initializer}
    describe = partial(_describe, known=known_shapes(model), constants=constants, device=device, library=library)
    return describe_nodes(model, is_gemm, batch, sizes, describe)


def _describe(
    node: onnx.NodeProto,
    x: onnx.TypeProto.Tensor | None,
    weight_type: int,
    known: Mapping[str, onnx.TypeProto.Tensor],
    constants: Set[str],
    device: Device | None,
    library: str | None,
) -> GemmNode:
    M = None if x is None else rows_of(x)
    x_type = TensorProto.FLOAT if x is None else x.elem_type
    kernel, reason = None, obstacle(device, library)
    if device is None or library is None:
        pass
    elif M is None:
        reason = "the number of rows is not known: give --batch and --dim"
    elif M == 0:
        reason = "no rows"
    else:
        try:
            fixed = known.get(node.input[0])
            rows = 0 if fixed is None else rows_of(fixed) or 0
            # a constant in the residual's place only tells Y's type
            adds = len(node.input) > _RESIDUAL and node.input[_RESIDUAL] not in {"", *constants}
            candidates = kernels_for(
                node, x_type, weight_type, [M], device, library, known_rows=rows, has_residual=adds
            )
            kernel = candidates[0].kernel if candidates else None
            reason = None if candidates else f"no kernel takes {M} rows"
        except UnsupportedError as error:
            reason = str(error)
    return GemmNode(**common_facts(node, x_type), M=M, kernel=kernel, reason=reason)


def rows_of(x: onnx.TypeProto.Tensor) -> int | None:
    """The rows of X, all axes but the last together, or None if its shape does not say."""
    if not x.HasField("shape") or len(x.shape.dim) == 0:
        return None
    leading = x.shape.dim[:-1]
    return math.prod(d.dim_value for d in leading) if all(d.HasField("dim_value") for d in leading) else None
