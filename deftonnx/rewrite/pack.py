"""From linear layers to DeftGemm nodes over packed weights (design.md, 'The custom operators').

`refuse` says which layers the operator cannot serve, and why. For the others: `pack_weights` makes packed weights,
`decode` writes what those stand for back into the graph, and `pack` turns the layers into DeftGemm nodes that compute
the same as that graph. With format fp8 activations are rounded too, which no graph of decoded weights does: its nodes
are packed with the weights' own format, and `round_activations` makes them fp8 when everything else has been done. A
bias that is an Add of its own, an activation and a residual are left to the pass in `fuse`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from deftonnx.formats import PackedWeight, pack_weight, unpack_weight, weight_format
from deftonnx.formats.fp8 import FP8
from deftonnx.formats.gemm_function import ANY_KERNEL, OPERATOR, gemm_attributes, is_gemm, weight_array
from deftonnx.formats.operator_function import DOMAIN, OLDEST_OPSET
from deftonnx.layers import LinearLayer
from deftonnx.layers.gemm import GemmLayer
from deftonnx.layers.linear import stored_as, unused_name
from deftonnx.layers.matmul import MatMulLayer
from deftonnx.rewrite.normalise import quiet

Array = np.ndarray[Any, Any]
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}
"""Types of a layer's weights, and so of its activations, that DeftGemm takes."""
WIDTHS = (64, 32, 16, 8, 4, 2, 1)
"""Blocks of input features that a kernel can read by a list of them, widest first."""


def refuse(layer: LinearLayer, opset: int) -> str | None:
    """Why `layer` cannot be a DeftGemm, or None."""
    if not isinstance(layer, (MatMulLayer, GemmLayer)):
        return f"packed formats serve MatMul and Gemm, not {layer.op}"
    if opset < OLDEST_OPSET:
        return f"packed formats need opset {OLDEST_OPSET}, the model has {opset}"
    weight = _weight_constant(layer)
    if np.dtype(weight.dtype) not in TYPES:
        return f"its type is {np.dtype(weight.dtype).name}"
    if isinstance(layer, GemmLayer):
        return "its input is transposed" if layer.input_axis == 0 else None
    if layer.weight_side == 0:
        return "its weight is the first operand"
    return "its weight has batch dimensions" if len(weight.shape) != 2 else None


def pack_weights(layers: list[LinearLayer], formats: dict[str, str], in_kernel: set[str]) -> dict[str, PackedWeight]:
    """The packed weight of every layer that `formats` gives a format, by layer name; for fp8 that of its weights alone.

    Layers in `in_kernel` are packed without the features they do not keep.
    """
    return {
        layer.name: pack_weight(_kept_weight(layer, layer.name in in_kernel), weight_format(formats[layer.name]))
        for layer in layers
        if layer.name in formats
    }


def decode(layers: list[LinearLayer], packed: dict[str, PackedWeight], in_kernel: set[str]) -> None:
    """Give every layer with a packed weight the values that it decodes to: the graph that `pack` must equal."""
    for layer in layers:
        if layer.name not in packed:
            continue
        weight = np.zeros_like(layer.weight())
        kept = layer.kept[0, 0] if layer.name in in_kernel else slice(None)
        weight[0, kept] = unpack_weight(packed[layer.name])
        layer.store(weight, layer.bias())


def pack(
    graph: gs.Graph,
    layers: list[LinearLayer],
    packed: dict[str, PackedWeight],
    in_kernel: set[str],
    compute: str = ANY_KERNEL,
) -> bool:
    """Make a DeftGemm of every layer with a packed weight, all of them layers that `refuse` accepts.

    What a layer in `in_kernel` does not keep is left to the kernel, whose K loop walks the kept blocks. Equal weights
    are stored once. `compute` says which kernels may serve. The graph computes what it would with the weights decoded.
    """
    stored: dict[bytes, tuple[gs.Constant, gs.Constant]] = {}
    with quiet():
        for layer in layers:
            if layer.name in packed:
                _to_deft_gemm(layer, packed[layer.name], layer.name in in_kernel, stored, compute)
    return bool(packed)


def round_activations(graph: gs.Graph, names: set[str]) -> None:
    """Turn the DeftGemm nodes of these names, with deft8:4 weights, into nodes of format fp8, in place."""
    for node in graph.nodes:
        if node.name in names and is_gemm(node.domain, node.op):
            node.attrs["format"] = FP8


def blocks_kept(kept: Array) -> tuple[int, Array] | None:
    """The widest block that `kept` (features,) is made of and the kept blocks, ascending; None where nothing is kept.

    The last block may be cut short by the end of the features.
    """
    for width in WIDTHS:
        padded = np.concatenate([kept, np.repeat(kept[-1:], -len(kept) % width)]).reshape(-1, width)
        if (padded == padded[:, :1]).all() and padded.any():
            return width, np.flatnonzero(padded[:, 0]).astype(np.int32)
    return None


def _weight_constant(layer: MatMulLayer | GemmLayer) -> gs.Constant:
    return layer.node.inputs[1 if isinstance(layer, GemmLayer) else layer.weight_side]


def _kept_weight(layer: LinearLayer, in_kernel: bool) -> Array:
    """(K', N)."""
    weight = layer.weight()[0]
    return weight[layer.kept[0, 0]] if in_kernel else weight


def _to_deft_gemm(
    layer: LinearLayer,
    packed: PackedWeight,
    in_kernel: bool,
    stored: dict[bytes, tuple[gs.Constant, gs.Constant]],
    compute: str,
) -> None:
    assert isinstance(layer, (MatMulLayer, GemmLayer))
    node, output_type = layer.node, TYPES[np.dtype(_weight_constant(layer).dtype)]
    bias = layer.bias() if isinstance(layer, GemmLayer) else None
    inputs = [
        layer.x,
        *_constants(packed, node.name, stored),
        gs.Constant(
            unused_name(f"{node.name}/gemm_bias"),
            np.zeros(packed.N, np.float32) if bias is None else bias.astype(np.float32),
        ),
    ]
    attributes = gemm_attributes(packed, features=layer.channels, output_type=output_type, compute=compute)
    if in_kernel and (found := blocks_kept(layer.kept[0, 0])) is not None:
        attributes["block"], blocks = found
        inputs.append(gs.Constant(unused_name(f"{node.name}/kept_blocks"), blocks))
    node.op, node.domain, node.inputs, node.attrs = OPERATOR, DOMAIN, inputs, attributes
    node.outputs[0].dtype = helper.tensor_dtype_to_np_dtype(output_type)


def _constants(
    packed: PackedWeight, name: str, stored: dict[bytes, tuple[gs.Constant, gs.Constant]]
) -> tuple[gs.Constant, gs.Constant]:
    """W and scale as initializers, shared with an earlier equal weight."""
    digest = hashlib.sha256(f"{packed.format} {packed.codes.shape} {packed.K}".encode())
    digest.update(packed.codes.tobytes())
    digest.update(packed.scale.tobytes())
    if digest.digest() not in stored:
        stored[digest.digest()] = (
            stored_as(unused_name(f"{name}/packed"), weight_array(packed)),
            gs.Constant(unused_name(f"{name}/packed_scale"), packed.scale),
        )
    return stored[digest.digest()]
