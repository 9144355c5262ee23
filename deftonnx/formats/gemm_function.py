"""``ai.deftonnx::DeftGemm`` and its ONNX function body, the operator in standard operators:

    Y = activation(X[..., kept features] · (value(W)ᵀ * scale) + bias + residual)

With format fp8 the kept features of X are rounded row by row before they are multiplied: see fp8.py.

Inputs
    X: (..., features) float32, float16 or bfloat16.
    W: the codes of a PackedWeight, constant.
    scale, bias: (N,) float32, constant.
    kept: (blocks,) int32, constant: the kept blocks of X's features; empty when all are kept.
    residual: like Y; or a constant scalar 0 of Y's type for none. It and `kept` may be left off the end, unless
        Y's type differs from X's: ONNX Runtime takes the type of Y from the residual then (see no_residual).
Output
    Y: (..., N), of type `output_type`; arithmetic is float32.
Attributes
    format, layout: how W is packed. exponent_bits: of formats deft8:E and fp8, set with the body, which reads it.
    features, K, N: X's features, those that are kept, output features.
    block: features a kept block has, a power of two; 0 when all features are kept.
    activation, with alpha and beta: see activation.py. output_type: TensorProto element type.
    compute: "auto"; or "packed", with which no unpacked copy of W is kept for products of many rows, which 8-bit
        weights else may have on the GPU (docs/kernels.md); or the name of the one CUDA kernel to use.

Nodes with other operators in their body have another overload: see operator_function.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from deftonnx.formats import get_format
from deftonnx.formats.activation import Nodes
from deftonnx.formats.fp8 import FP8, rounding_nodes
from deftonnx.formats.operator_function import (
    DOMAIN,
    activation_nodes,
    attach_functions,
    decode_nodes,
    integer_attribute,
    integers,
    is_operator,
    keeps_blocks,
    make_function,
    output_cast,
    residual_nodes,
    string_attribute,
)
from deftonnx.formats.packed import LAYOUT_VERSION, PackedWeight

OPERATOR = "DeftGemm"
ANY_KERNEL, PACKED = "auto", "packed"
"""What `compute` may be beside a kernel's name."""
_INPUTS = ("X", "W", "scale", "bias", "kept", "residual")
_ATTRIBUTES = (
    "format",
    "exponent_bits",
    "layout",
    "features",
    "K",
    "N",
    "block",
    "activation",
    "alpha",
    "beta",
    "output_type",
    "compute",
)
_OUTPUT_BYTES: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2}


def is_gemm(domain: str | None, operator: str) -> bool:
    """Whether domain::operator is DeftGemm."""
    return is_operator(domain, operator, OPERATOR)


def gemm_node(
    inputs: Sequence[str],
    output: str,
    packed: PackedWeight,
    *,
    name: str = "",
    features: int | None = None,
    block: int = 0,
    activation: str = "none",
    alpha: float = 0.0,
    beta: float = 0.0,
    output_type: int = TensorProto.FLOAT,
    compute: str = ANY_KERNEL,
) -> onnx.NodeProto:
    """Return a DeftGemm node over `packed`; `inputs` name X, W, scale, bias and, if used, the last two."""
    attributes = gemm_attributes(
        packed,
        features=features,
        block=block,
        activation=activation,
        alpha=alpha,
        beta=beta,
        output_type=output_type,
        compute=compute,
    )
    node = helper.make_node(OPERATOR, inputs, [output], name=name, domain=DOMAIN, **attributes)
    return node


def gemm_attributes(
    packed: PackedWeight,
    *,
    features: int | None = None,
    block: int = 0,
    activation: str = "none",
    alpha: float = 0.0,
    beta: float = 0.0,
    output_type: int = TensorProto.FLOAT,
    compute: str = ANY_KERNEL,
) -> dict[str, Any]:
    """Return the attributes of a DeftGemm node over `packed`."""
    return {
        "format": packed.format,
        "layout": LAYOUT_VERSION,
        "features": packed.K if features is None else features,
        "K": packed.K,
        "N": packed.N,
        "block": block,
        "activation": activation,
        "alpha": alpha,
        "beta": beta,
        "output_type": output_type,
        "compute": compute,
    }


def weight_array(packed: PackedWeight) -> np.ndarray[Any, Any]:
    """The codes W of `packed`, in the type that nodes take them in."""
    return packed.codes.view(helper.tensor_dtype_to_np_dtype(get_format(packed.format).onnx_type))


def weight_tensors(packed: PackedWeight, name: str) -> tuple[TensorProto, TensorProto]:
    """Return the initializers W and scale of `packed`, called `name` and `name`_scale."""
    codes = TensorProto(name=name, data_type=get_format(packed.format).onnx_type, dims=packed.codes.shape)
    codes.raw_data = packed.codes.tobytes()
    return codes, onnx.numpy_helper.from_array(packed.scale, f"{name}_scale")


def no_residual(output_type: int, name: str) -> TensorProto:
    """Return the initializer `name` that stands for no residual and tells that Y has `output_type`."""
    return TensorProto(name=name, data_type=output_type, raw_data=bytes(_OUTPUT_BYTES[output_type]))


def attach_gemm_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every DeftGemm node of `model` its function body in place; return `model`.

    To be called last. Raises FormatError for an opset under 13 and an unknown format or activation.
    """
    return attach_functions(model, OPERATOR, gemm_function)


def gemm_function(node: onnx.NodeProto, opset: int, *, padded: bool = True) -> onnx.FunctionProto:
    """The body of a DeftGemm node, which gets the numbers of its format as attributes.

    padded: whether the rows of W may be longer than K.
    """
    rounds = string_attribute(node, "format") == FP8
    nodes = [
        helper.make_node("Cast", ["X"], ["X_float"], to=TensorProto.FLOAT),
        integer_attribute("K", "K_scalar"),
        integers("flat", [-1]),
        integers("first", [0]),
        helper.make_node("Reshape", ["K_scalar", "flat"], ["K"]),
        *(_kept_features() if keeps_blocks(node) else [helper.make_node("Identity", ["X_float"], ["X_kept"])]),
        *decode_nodes(node, opset),
        *(rounding_nodes("X_kept", "X_rounded", opset) if rounds else []),
        *_product("X_rounded" if rounds else "X_kept", padded=padded),
        *residual_nodes("biased", present=len(node.input) == len(_INPUTS)),
        *activation_nodes(string_attribute(node, "activation")),
        output_cast(),
    ]
    return make_function(OPERATOR, _INPUTS[: len(node.input)], nodes, _ATTRIBUTES, opset)


def _product(x: str, *, padded: bool) -> Nodes:
    """From W_values (N, Kp) and `x` (..., K) to the float32 `biased` (..., N)."""
    rows = [
        integers("feature_axis", [1]),
        helper.make_node("Slice", ["W_values", "first", "K", "feature_axis"], ["W_rows"]),
    ]
    return [
        *(rows if padded else [helper.make_node("Identity", ["W_values"], ["W_rows"])]),
        helper.make_node("Transpose", ["W_rows"], ["W_columns"], perm=[1, 0]),
        helper.make_node("Mul", ["W_columns", "scale"], ["weight"]),
        helper.make_node("MatMul", [x, "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["biased"]),
    ]


def _kept_features() -> Nodes:
    """From X_float and `kept` to X_kept; a block that X cuts short comes last, and the slice ends it."""
    node = helper.make_node
    return [
        integer_attribute("block", "block_size"),
        node("Constant", [], ["zero_integer"], value_int=0),
        node("Constant", [], ["one_integer"], value_int=1),
        integers("column", [-1, 1]),
        node("Range", ["zero_integer", "block_size", "one_integer"], ["within"]),
        node("Cast", ["kept"], ["kept_long"], to=TensorProto.INT64),
        node("Mul", ["kept_long", "block_size"], ["starts"]),
        node("Reshape", ["starts", "column"], ["start_column"]),
        node("Add", ["start_column", "within"], ["grid"]),
        node("Reshape", ["grid", "flat"], ["block_features"]),
        node("Slice", ["block_features", "first", "K"], ["feature_index"]),
        node("Gather", ["X_float", "feature_index"], ["X_kept"], axis=-1),
    ]
