"""DeftGemm, which an earlier run has written: left alone, its sizes known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from deftonnx.formats.gemm_function import OPERATOR
from deftonnx.formats.mlp_function import OPERATOR as MLP
from deftonnx.formats.mlp_function import gemms_of, layer_inputs
from deftonnx.formats.operator_function import DOMAIN
from deftonnx.layers.linear import Refusal, constant_bytes, dimension_rule


@dataclass(frozen=True)
class PackedGemm(Refusal):
    """A layer whose weight is packed. K counts the features that it keeps, `bytes` is what all its constants take,
    `m_rule` and `macs` are as those of a `LinearLayer`."""

    format: str
    m_rule: str
    K: int
    N: int
    parameters: int
    macs: int
    bytes: int


def match_mlp(node: gs.Node) -> Refusal | None:
    """The refusal of a DeftMlp, with the sizes of its layers together; as `match` elsewhere."""
    if node.domain != DOMAIN:
        return Refusal(node.name, node.op, f"an operator of the domain '{node.domain}'")
    layers = gemms_of(node.attrs)
    x = node.inputs[0]
    m_rule, rows = dimension_rule(x.shape[:-1] if x.shape else [None])
    biased = [_is_biased(constants) for constants in layer_inputs(node.inputs)]
    weights = sum(layer["K"] * layer["N"] for layer in layers)
    name = " ".join(dict.fromkeys(layer["format"] for layer in layers))
    return PackedGemm(
        node.name,
        MLP,
        f"already packed as {name}",
        format=name,
        m_rule=m_rule,
        K=layers[0]["K"],
        N=layers[-1]["N"],
        parameters=weights + sum(layer["N"] for layer, has in zip(layers, biased, strict=False) if has),
        macs=rows * weights,
        bytes=constant_bytes(node),
    )


def match(node: gs.Node) -> Refusal | None:
    """The refusal of a DeftGemm, with its sizes; that of a node of this name in another domain has none."""
    if node.domain != DOMAIN:
        return Refusal(node.name, node.op, f"an operator of the domain '{node.domain}'")
    if missing := [name for name in ("K", "N", "format") if name not in node.attrs]:
        return Refusal(node.name, node.op, f"attribute '{missing[0]}' is missing")
    K, N, name = int(node.attrs["K"]), int(node.attrs["N"]), str(node.attrs["format"])
    x = node.inputs[0]
    m_rule, rows = dimension_rule(x.shape[:-1] if x.shape else [None])
    biased = _is_biased(node.inputs[1:])
    return PackedGemm(
        node.name,
        OPERATOR,
        f"already packed as {name}",
        format=name,
        m_rule=m_rule,
        K=K,
        N=N,
        parameters=K * N + N * biased,
        macs=rows * K * N,
        bytes=constant_bytes(node),
    )


def _is_biased(constants: Sequence[gs.Tensor]) -> bool:
    """Whether the bias behind W and its scale is there, and not all zeros."""
    bias = next(iter(constants[2:]), None)
    return isinstance(bias, gs.Constant) and bool(bias.values.any())
