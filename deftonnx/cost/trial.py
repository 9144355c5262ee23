"""Small models that hold one layer in one form, with weights of their own side by side, to be timed.

The layers are as many as the L2 cache does not hold, since a model meets its weights cold. The weights are random
numbers: time does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deftonnx.cost.work import BYTES, DEFT, Convolution, Form, Product, Work, kept_features
from deftonnx.formats import PackedWeight, pack_weight
from deftonnx.formats.conv_function import attach_conv_functions, conv_attributes, conv_node
from deftonnx.formats.gemm_function import attach_gemm_functions, gemm_node, weight_tensors
from deftonnx.rewrite.channels_last.region import ALIGNMENT

Array = np.ndarray[Any, Any]
OPSET = 20
COLD_BYTES = 96 << 20
MOST_LAYERS = {Product: 16, Convolution: 4}
"""A convolution reads its weights more often than once, and cuDNN's search for the best algorithm takes long."""
_SAMPLE = 64
"""Output features that are really packed; the others are copies."""


def trial(work: Work, form: Form) -> tuple[onnx.ModelProto, int]:
    """The model, with input X and outputs Y0, Y1 …, and how many layers it has."""
    weight_bytes = kept_features(work, form) * work.N * BYTES[form.type]
    count = max(1, min(MOST_LAYERS[type(work)], math.ceil(COLD_BYTES / weight_bytes)))
    build = _BUILDERS[type(work), form.operator == DEFT]
    nodes, weights = [], []
    for i in range(count):
        made, constants = build(work, form, f"Y{i}")
        nodes += made
        weights += constants
    rank = len(x_shape(work, form, 1))
    x = helper.make_tensor_value_info("X", form.type, [None] * rank)
    y = [helper.make_tensor_value_info(f"Y{i}", form.type, [None] * rank) for i in range(count)]
    opsets = [helper.make_opsetid("", OPSET)]
    graph = helper.make_graph(nodes, "trial", [x], y, weights)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return attach_conv_functions(attach_gemm_functions(model)), count


def x_shape(work: Work, form: Form, batch: int) -> tuple[int, ...]:
    """The shape of X in `form`; DeftConv has its channels last."""
    if isinstance(work, Product):
        return (batch, work.K) if work.rows == 1 else (batch, work.rows, work.K)
    if form.operator == DEFT:
        return (batch, *work.image, _filled(work).channels)
    return (batch, work.channels, *work.image)


def gemm_of(work: Product, form: Form, y: str = "Y", x: str = "X") -> onnx.NodeProto:
    """The DeftGemm of `work` that makes `y` of `x`."""
    packed = _sizes(work, form)
    return gemm_node(
        _inputs(form, y, x),
        y,
        packed,
        name=y,
        features=packed.K if form.gather else work.K,
        block=form.block,
        activation=_activation(work),
        output_type=form.type,
        compute=form.compute,
    )


def conv_of(work: Convolution, form: Form, y: str = "Y") -> onnx.NodeProto:
    """The DeftConv of `work` that makes `y` of X."""
    filled = _filled(work)
    attributes = conv_attributes(
        _sizes(filled, form),
        work.window,
        filled.channels,
        block=form.block,
        activation=_activation(work),
        output_type=form.type,
    )
    return conv_node(_inputs(form, y, "X"), y, attributes, name=y)


def _sizes(work: Work, form: Form) -> PackedWeight:
    """A weight of the right sizes without values: a node does not know them."""
    K = kept_features(work, form)
    return PackedWeight(form.format, np.broadcast_to(np.uint8(0), (work.N, K)), np.zeros(work.N, np.float32), K)


def _inputs(form: Form, y: str, x: str) -> list[str]:
    return [x, f"{y}_W", f"{y}_W_scale", f"{y}_bias", *([f"{y}_kept"] if form.block else [])]


def _activation(work: Work) -> str:
    return "relu" if work.activated else "none"


_Parts = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def _stock_product(work: Product, form: Form, y: str) -> _Parts:
    K = kept_features(work, form)
    nodes, weights, x = _gathered(work, form, y)
    weights += [_constant((K, work.N), f"{y}_W", form.type), _constant((work.N,), f"{y}_b", form.type)]
    nodes.append(helper.make_node("MatMul", [x, f"{y}_W"], [f"{y}_p"]))
    nodes.append(helper.make_node("Add", [f"{y}_p", f"{y}_b"], [f"{y}_s" if work.activated else y]))
    if work.activated:
        nodes.append(helper.make_node("Relu", [f"{y}_s"], [y]))
    return nodes, weights


def _gathered(work: Product, form: Form, y: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """The Gather of the kept features, if `form` has one, and the name of what it makes."""
    if not form.gather:
        return [], [], "X"
    kept = np.random.default_rng(0).permutation(work.K)[: kept_features(work, form)]
    index = numpy_helper.from_array(np.sort(kept).astype(np.int64), f"{y}_index")
    return [helper.make_node("Gather", ["X", index.name], [f"{y}_x"], axis=-1)], [index], f"{y}_x"


def _deft_product(work: Product, form: Form, y: str) -> _Parts:
    packed = _packed(kept_features(work, form), work.N, form.format)
    nodes, weights, x = _gathered(work, form, y)
    weights += _weights(packed, y)
    if form.block:
        weights.append(_kept_blocks(work.K // form.block, packed.K // form.block, f"{y}_kept"))
    return [*nodes, gemm_of(work, form, y, x)], weights


def _stock_convolution(work: Convolution, form: Form, y: str) -> _Parts:
    w = work.window
    channels = work.channels // w.group
    attributes = {name: getattr(w, name) for name in ("kernel_shape", "strides", "pads", "dilations", "group")}
    weights = [
        _constant((work.N, channels, *w.kernel_shape), f"{y}_W", form.type),
        _constant((work.N,), f"{y}_b", form.type),
    ]
    result = f"{y}_s" if work.activated else y
    nodes = [helper.make_node("Conv", ["X", f"{y}_W", f"{y}_b"], [result], **attributes)]
    if work.activated:
        nodes.append(helper.make_node("Relu", [result], [y]))
    return nodes, weights


def _filled(work: Convolution) -> Convolution:
    """As DeftConv has it: with channels of zeros up to whole loads."""
    if work.window.group > 1:
        return work
    return replace(work, channels=-(-work.channels // ALIGNMENT) * ALIGNMENT, N=-(-work.N // ALIGNMENT) * ALIGNMENT)


def _deft_convolution(dense: Convolution, form: Form, y: str) -> _Parts:
    work = _filled(dense)
    packed = _packed(kept_features(work, form), work.N, form.format)
    weights = _weights(packed, y)
    if form.block:
        blocks = work.features // form.block
        parts = [
            group * blocks + numpy_helper.to_array(_kept_blocks(blocks, packed.K // form.block, ""))
            for group in range(work.window.group)
        ]
        weights.append(numpy_helper.from_array(np.concatenate(parts).astype(np.int32), f"{y}_kept"))
    return [conv_of(dense, form, y)], weights


_BUILDERS: dict[tuple[type, bool], Callable[[Any, Form, str], _Parts]] = {
    (Product, False): _stock_product,
    (Product, True): _deft_product,
    (Convolution, False): _stock_convolution,
    (Convolution, True): _deft_convolution,
}


def _kept_blocks(blocks: int, kept: int, name: str) -> onnx.TensorProto:
    """`kept` of so many blocks, spread evenly."""
    return numpy_helper.from_array((np.arange(kept) * blocks // kept).astype(np.int32), name)


def _weights(packed: PackedWeight, y: str) -> list[onnx.TensorProto]:
    bias = numpy_helper.from_array(np.zeros(packed.N, np.float32), f"{y}_bias")
    return [*weight_tensors(packed, f"{y}_W"), bias]


def _packed(K: int, N: int, format_name: str) -> PackedWeight:
    few = pack_weight(_random((K, min(N, _SAMPLE))), format_name)
    codes = np.resize(few.codes, (N, few.codes.shape[1]))
    return PackedWeight(few.format, codes, np.resize(few.scale, N), K)


def _random(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32) / 16


def _constant(shape: tuple[int, ...], name: str, kind: int) -> onnx.TensorProto:
    values = np.resize(_random((1 << 16,)), shape)
    if kind == TensorProto.FLOAT:
        return numpy_helper.from_array(values, name)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    return helper.make_tensor(name, kind, shape, np.ascontiguousarray(values.astype(dtype)).tobytes(), raw=True)
