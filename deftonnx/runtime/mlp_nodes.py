"""The DeftMlp nodes of a model, and how many rows each gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from deftonnx.formats.mlp_function import attributes_of, is_mlp
from deftonnx.runtime.gemm_nodes import rows_of
from deftonnx.runtime.packed_nodes import TYPE_NAMES, describe_nodes


@dataclass(frozen=True)
class MlpNode:
    """One node: a format for each layer, and the features of X and of each layer. M: rows of X at the asked batch,
    None if the shapes do not say."""

    name: str
    formats: list[str]
    x_type: str
    widths: list[int]
    M: int | None


def mlp_nodes(model: onnx.ModelProto, batch: int | None, sizes: Mapping[str, int]) -> list[MlpNode]:
    """Return the DeftMlp nodes of `model`, those in bodies of If, Loop and Scan included; arguments as gemm_nodes."""
    return describe_nodes(model, is_mlp, batch, sizes, _describe)


def _describe(node: onnx.NodeProto, x: onnx.TypeProto.Tensor | None, weight_type: int) -> MlpNode:
    attributes = attributes_of(node)
    return MlpNode(
        name=node.name or node.output[0],
        formats=attributes["formats"].split(),
        x_type=TYPE_NAMES[TensorProto.FLOAT if x is None else x.elem_type],
        widths=list(attributes["widths"]),
        M=None if x is None else rows_of(x),
    )
