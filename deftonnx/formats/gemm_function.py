"""``ai.deftonnx::DeftGemm`` and its ONNX function body, the operator in standard operators:

    Y = activation(X[..., kept features] · (value(W)ᵀ * scale) + bias + residual)

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
    format, layout: how W is packed. features, K, N: X's features, those that are kept, output features.
    block: features a kept block has, a power of two; 0 when all features are kept.
    activation, with alpha and beta: see activation.py. output_type: TensorProto element type.
    compute: "auto", or the name of the one CUDA kernel to use.

A function cannot leave an input out, and its operators depend on the attributes, so every combination used
in a model has a body of its own, and therefore a name: DeftGemm, DeftGemm_2, DeftGemm_3 … in the order of the
combinations. To the operator library all these names are one operator. (Overloads, which IR version 10 has for
this, would not do: ONNX Runtime before 1.28 takes one body for all of them, and computes nonsense.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from deftonnx.formats import get_format
from deftonnx.formats.activation import ACTIVATIONS, Nodes
from deftonnx.formats.packed import LAYOUT_VERSION, FormatError, PackedWeight

DOMAIN = "ai.deftonnx"
OPERATOR = "DeftGemm"
OLDEST_OPSET = 13  # Cast of bfloat16
_INPUTS = ("X", "W", "scale", "bias", "kept", "residual")
_ATTRIBUTES = (
    "format",
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
MOST_BODIES = 64
"""Names that the operator library knows: custom_ops/runtime/gemm_op.cpp."""
_IR_VERSION_WITH_FUNCTIONS = 8


def is_gemm(domain: str | None, operator: str) -> bool:
    """Whether this is DeftGemm, under any of the names that its bodies have."""
    return domain == DOMAIN and base_name(operator) == OPERATOR


def base_name(operator: str) -> str:
    """DeftGemm for the numbered names of its bodies, and any other operator's own name."""
    head, _, number = operator.partition("_")
    return head if head == OPERATOR and number.isdecimal() else operator


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
    compute: str = "auto",
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
    compute: str = "auto",
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


def weight_tensors(packed: PackedWeight, name: str) -> tuple[TensorProto, TensorProto]:
    """Return the initializers W and scale of `packed`, called `name` and `name`_scale."""
    codes = TensorProto(name=name, data_type=get_format(packed.format).onnx_type, dims=packed.codes.shape)
    codes.raw_data = packed.codes.tobytes()
    return codes, onnx.numpy_helper.from_array(packed.scale, f"{name}_scale")


def no_residual(output_type: int, name: str) -> TensorProto:
    """Return the initializer `name` that stands for no residual and tells that Y has `output_type`."""
    return TensorProto(name=name, data_type=output_type, raw_data=bytes(_OUTPUT_BYTES[output_type]))


def attach_gemm_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every DeftGemm node of `model` its function body, and the name of that, in place; return `model`.

    To be called last. The IR version rises to 8 where it was lower. Raises FormatError for an opset under 13, an
    unknown format or activation, and more than MOST_BODIES combinations.
    """
    nodes = [n for n in _all_nodes(model.graph) if is_gemm(n.domain, n.op_type)]
    if not nodes:
        return model
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    examples = {_combination(node): node for node in nodes}
    if len(examples) > MOST_BODIES:
        raise FormatError(f"{len(examples)} combinations of format, activation and inputs; {MOST_BODIES} are possible")
    names = {key: OPERATOR if i == 1 else f"{OPERATOR}_{i}" for i, key in enumerate(sorted(examples), start=1)}
    for node in nodes:
        node.op_type = names[_combination(node)]
        node.ClearField("overload")
    others = [f for f in model.functions if not is_gemm(f.domain, f.name)]
    del model.functions[:]
    model.functions.extend([*others, *(_function(examples[key], names[key], opset) for key in names)])
    if all(o.domain != DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    model.ir_version = max(model.ir_version, _IR_VERSION_WITH_FUNCTIONS)
    return model


def _combination(node: onnx.NodeProto) -> str:
    """What the body of `node` depends on: nodes of the same combination share one."""
    format_name = _string(node, "format").replace(":", "")
    parts = [format_name, _string(node, "activation")]
    if _selects(node):
        parts.append("kept")
    return "_".join([*parts, f"{len(node.input)}_inputs"])


def _function(node: onnx.NodeProto, name: str, opset: int) -> onnx.FunctionProto:
    if opset < OLDEST_OPSET:
        raise FormatError(f"packed weights need ONNX opset {OLDEST_OPSET} or newer, the model has {opset}")
    layout = next((a.i for a in node.attribute if a.name == "layout"), 0)
    if layout != LAYOUT_VERSION:
        raise FormatError(f"node {node.name!r} ({OPERATOR}) has layout version {layout}, known is {LAYOUT_VERSION}")
    activation = _string(node, "activation")
    if activation not in ACTIVATIONS:
        raise FormatError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    nodes = [
        helper.make_node("Cast", ["X"], ["X_float"], to=TensorProto.FLOAT),
        _integer_attribute("K", "K_scalar"),
        _integers("flat", [-1]),
        _integers("first", [0]),
        helper.make_node("Reshape", ["K_scalar", "flat"], ["K"]),
        *(_kept_features() if _selects(node) else [helper.make_node("Identity", ["X_float"], ["X_kept"])]),
        *get_format(_string(node, "format")).decode_nodes(opset),
        *_product(),
        *(_residual() if len(node.input) == len(_INPUTS) else [helper.make_node("Identity", ["biased"], ["Z"])]),
        *ACTIVATIONS[activation](),
        _output_cast(),
    ]
    return helper.make_function(
        DOMAIN,
        name,
        _INPUTS[: len(node.input)],
        ["Y"],
        nodes,
        [helper.make_opsetid("", opset)],
        attributes=list(_ATTRIBUTES),
    )


def _product() -> Nodes:
    """From W_values (N, Kp) and X_kept (..., K) to the float32 `biased` (..., N)."""
    return [
        _integers("feature_axis", [1]),
        helper.make_node("Slice", ["W_values", "first", "K", "feature_axis"], ["W_rows"]),
        helper.make_node("Transpose", ["W_rows"], ["W_columns"], perm=[1, 0]),
        helper.make_node("Mul", ["W_columns", "scale"], ["weight"]),
        helper.make_node("MatMul", ["X_kept", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["biased"]),
    ]


def _kept_features() -> Nodes:
    """From X_float and `kept` to X_kept; a block that X cuts short comes last, and the slice ends it."""
    node = helper.make_node
    return [
        _integer_attribute("block", "block_size"),
        node("Constant", [], ["zero_integer"], value_int=0),
        node("Constant", [], ["one_integer"], value_int=1),
        _integers("column", [-1, 1]),
        node("Range", ["zero_integer", "block_size", "one_integer"], ["within"]),
        node("Cast", ["kept"], ["kept_long"], to=TensorProto.INT64),
        node("Mul", ["kept_long", "block_size"], ["starts"]),
        node("Reshape", ["starts", "column"], ["start_column"]),
        node("Add", ["start_column", "within"], ["grid"]),
        node("Reshape", ["grid", "flat"], ["block_features"]),
        node("Slice", ["block_features", "first", "K"], ["feature_index"]),
        node("Gather", ["X_float", "feature_index"], ["X_kept"], axis=-1),
    ]


def _residual() -> Nodes:
    return [
        helper.make_node("Cast", ["residual"], ["residual_float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["biased", "residual_float"], ["Z"]),
    ]


def _output_cast() -> onnx.NodeProto:
    node = helper.make_node("Cast", ["A"], ["Y"])
    node.attribute.append(onnx.AttributeProto(name="to", ref_attr_name="output_type", type=onnx.AttributeProto.INT))
    return node


def _integer_attribute(name: str, output: str) -> onnx.NodeProto:
    """A constant int64 scalar, the calling node's attribute `name`."""
    node = helper.make_node("Constant", [], [output])
    node.attribute.append(onnx.AttributeProto(name="value_int", ref_attr_name=name, type=onnx.AttributeProto.INT))
    return node


def _integers(output: str, values: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value_ints=np.array(values, np.int64))


def _selects(node: onnx.NodeProto) -> bool:
    return any(a.name == "block" and a.i > 0 for a in node.attribute)


def _string(node: onnx.NodeProto, name: str) -> str:
    for attribute in node.attribute:
        if attribute.name == name:
            return str(attribute.s.decode())
    raise FormatError(f"node {node.name!r} ({OPERATOR}) lacks the attribute {name!r}")


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of `graph` and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            subgraphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for subgraph in subgraphs:
                yield from _all_nodes(subgraph)
