"""DeftGemm models that must be refused when the session is made, and random damage to good ones."""

import random
from collections.abc import Iterator

import numpy as np
import onnx
from gemm_model import gemm_model
from onnx import TensorProto, helper

from deftonnx.formats import pack_weight

_M, _K, _N = 5, 33, 9


def good_model(name: str = "deft8:4", **options) -> onnx.ModelProto:
    """One DeftGemm of (5, 33) by (33, 9)."""
    rng = np.random.default_rng(0)
    packed = pack_weight(rng.standard_normal((_K, _N)).astype(np.float32), name)
    return gemm_model(np.zeros((_M, _K), np.float32), packed, np.zeros(_N, np.float32), **options)


def _eliminating_model(kept: list[int]) -> onnx.ModelProto:
    """24 of 40 features, in blocks of 16."""
    packed = pack_weight(np.random.default_rng(0).standard_normal((24, _N)).astype(np.float32), "deft8:4")
    X = np.zeros((_M, 40), np.float32)
    return gemm_model(X, packed, np.zeros(_N, np.float32), features=40, block=16, kept=kept)


_ATTRIBUTES = [
    ("format", "deft9", "unknown format 'deft9'"),
    ("format", "deft8:8", "unknown format 'deft8:8'"),
    ("format", "deft8:0", "unknown format 'deft8:0'"),
    ("format", "deft16", "type of input W does not match"),
    ("format", None, "'format' is missing"),
    ("format", 4, "'format' is missing or of the wrong type"),
    ("layout", 2, "layout version 2"),
    ("layout", -1, "layout version -1"),
    ("layout", None, "'layout' is missing"),
    ("activation", "softmax", "unknown activation 'softmax'"),
    ("activation", None, "'activation' is missing"),
    ("features", None, "'features' is missing"),
    ("features", 40, "features and K differ"),
    ("features", 2**40, "out of range"),
    ("K", 32, "features and K differ"),
    ("K", 0, "K = 0 is out of range"),
    ("K", -16, "K = -16 is out of range"),
    ("N", 8, "expected (8, 48)"),
    ("N", "nine", "'N' is missing or of the wrong type"),
    ("block", 3, "not a power of two"),
    ("block", -8, "not a power of two"),
    ("block", 8192, "not a power of two up to 4096"),
    ("block", 16, "kept"),
    ("output_type", 16, "output_type"),
    ("output_type", 7, "output_type"),
    ("alpha", None, "'alpha' is missing"),
    ("beta", "high", "'beta' is missing or of the wrong type"),
    ("compute", None, "'compute' is missing"),
]
_KEPT = [
    ([0, 3], "kept block 3 is outside the 40 features"),
    ([-1, 0], "kept block -1"),
    ([2, 0], "kept blocks must increase"),
    ([0, 0], "kept blocks must increase"),
    ([0, 1], "hold 32 features, K is 24"),
    ([2], "expected (2)"),
    ([0, 1, 2], "expected (2)"),
    ([], "expected (2)"),
]


def bad_models() -> Iterator[tuple[str, onnx.ModelProto, str]]:
    """A name, a model and what the error must say; the errors are the operator's own and name the node."""
    for attribute, value, reason in _ATTRIBUTES:
        yield f"{attribute}={value}", _with_attribute(good_model(), attribute, value), reason
    for kept, reason in _KEPT:
        yield f"kept={kept}", _eliminating_model(kept), reason
    for name in ("W", "W_scale", "bias"):
        yield f"{name} is an input", _with_input(good_model(), name), "must be an initializer"
    yield "kept is an input", _with_input(_eliminating_model([0, 2]), "kept"), "must be an initializer"
    for name, shape in (("W", (_K, _N)), ("W", (_N, 32)), ("W_scale", (_K,)), ("W_scale", ()), ("bias", (1, _N))):
        yield f"{name} of shape {shape}", _with_shape(good_model(), name, shape), "expected"
    zero = good_model(output_dtype=np.float16)
    _initializer(zero, "residual").raw_data = np.float16(1).tobytes()
    yield "scalar residual", zero, "must be 0"
    yield "a code of fp8", _with_code(good_model("fp8"), 0xFF), "W holds the code 0x7F or 0xFF"


def models_onnxruntime_refuses() -> Iterator[tuple[str, onnx.ModelProto]]:
    """A name and a model that ONNX Runtime itself refuses, by the operator's schema."""
    for name, element in (("W", TensorProto.INT64), ("W_scale", TensorProto.DOUBLE), ("bias", TensorProto.INT32)):
        model = good_model()
        tensor = _initializer(model, name)
        values = np.zeros(tensor.dims, helper.tensor_dtype_to_np_dtype(element))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
        yield f"{name} of type {element}", model
    for count in (1, 3):
        model = good_model()
        del model.graph.node[0].input[count:]
        yield f"{count} inputs", model
    model = good_model()
    model.graph.node[0].input.extend(["bias", "bias", "bias"])
    yield "seven inputs", model
    model = good_model()
    model.graph.node[0].input[2] = ""
    yield "no scale", model
    model = good_model()
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    yield "Y of another type", model


def damaged_model(seed: int) -> onnx.ModelProto:
    """A good model with one to three random changes to its node and initializers; it may still be good."""
    rng = random.Random(seed)
    format_name = rng.choice(["fp32", "half", "deft16", "deft16q", "deft8:3", "fp8"])
    model = good_model(format_name) if rng.random() < 0.6 else _eliminating_model([0, 2])
    for _ in range(rng.randint(1, 3)):
        rng.choice((_damage_attribute, _damage_input, _damage_tensor))(model, rng)
    return model


def _damage_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    name = rng.choice([a.name for a in model.graph.node[0].attribute])
    integer = rng.choice([-1, 0, 1, 2, 8, 16, 24, 33, 40, 2**31, -(2**63), 2**63 - 1])
    value = rng.choice([None, integer, 0.5, float("nan"), "", "x" * 1000, "deft16", "relu", "simt", [1, 2]])
    _with_attribute(model, name, value)


def _damage_input(model: onnx.ModelProto, rng: random.Random) -> None:
    inputs = model.graph.node[0].input
    names = ["", "X", *(t.name for t in model.graph.initializer)]
    if inputs:
        inputs[rng.randrange(len(inputs))] = rng.choice(names)
    if rng.random() < 0.3:
        inputs.append(rng.choice(names))
    elif rng.random() < 0.3:
        del inputs[rng.randint(0, len(inputs)) :]


def _damage_tensor(model: onnx.ModelProto, rng: random.Random) -> None:
    name = rng.choice([t.name for t in model.graph.initializer])
    shape = tuple(rng.choice([0, 1, 2, 9, 16, 33, 40, 48]) for _ in range(rng.randint(0, 3)))
    if rng.random() < 0.5:
        _with_shape(model, name, shape)
        return
    tensor = _initializer(model, name)
    size = len(tensor.raw_data)
    tensor.raw_data = bytes(rng.getrandbits(8) for _ in range(rng.choice([size, size, max(size - 1, 0), 0])))


def _with_attribute(model: onnx.ModelProto, name: str, value: object) -> onnx.ModelProto:
    """`model` with one attribute of its DeftGemm replaced, or removed if value is None."""
    node = model.graph.node[0]
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))
    return model


def _with_input(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`model` with an initializer made an input of the graph."""
    tensor = _initializer(model, name)
    model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    model.graph.initializer.remove(tensor)
    return model


def _with_shape(model: onnx.ModelProto, name: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """`model` with an initializer replaced by zeros of another shape."""
    tensor = _initializer(model, name)
    bytes_each = 4 if tensor.data_type in (1, 6, 12) else 2 if tensor.data_type in (10, 16) else 1
    size = int(np.prod(shape, dtype=np.int64))
    tensor.CopyFrom(TensorProto(name=name, data_type=tensor.data_type, dims=shape, raw_data=bytes(size * bytes_each)))
    return model


def _with_code(model: onnx.ModelProto, code: int) -> onnx.ModelProto:
    tensor = _initializer(model, "W")
    tensor.raw_data = tensor.raw_data[:40] + bytes([code]) + tensor.raw_data[41:]
    return model


def _initializer(model: onnx.ModelProto, name: str) -> TensorProto:
    return next((t for t in model.graph.initializer if t.name == name), model.graph.initializer[0])
