"""Nodes in float16 between others that ONNX Runtime's CPU provider has no float16 kernels for: it widens them."""

import attention_model
import channels_last_model
import numpy as np
import onnx
import onnxruntime
import pool_model
import pytest
from conv_model import conv_case, conv_model
from gemm_model import gemm_model
from mlp_model import Chain
from models import assert_same
from onnx import TensorProto, helper, numpy_helper

from deftonnx.formats import pack_weight
from deftonnx.formats.conv_function import Window

ROWS = np.random.default_rng(0).standard_normal((5, 24)).astype(np.float16)


def gemm(name, **options):
    packed = pack_weight(np.random.default_rng(1).standard_normal((24, 9)).astype(np.float32) / 5, name)
    return ROWS, gemm_model(ROWS, packed, np.ones(9, np.float32), **options)


def conv():
    window = Window.of((3, 3), pads=(1, 1, 1, 1))
    X, packed, bias, _ = conv_case(2, (6, 5), 8, 5, window, "half", np.float16)
    return X, conv_model(X, packed, bias, window)


def mlp():
    chain = Chain((24, 16, 8), np.float16)
    return ROWS, chain.model


def attention():
    inputs, model, _ = attention_model.case((2, 5, 2, 8), "no_bias", np.float16)
    return inputs[0], model


CASES = {
    "half": lambda: gemm("half"),
    "deft16": lambda: gemm("deft16"),
    "deft8": lambda: gemm("deft8:4"),
    "relu": lambda: gemm("half", activation="relu"),
    "conv": conv,
    "mlp": mlp,
    "attention": attention,
    "pool": lambda: pool_model.case("max", np.float16)[:2],
    "channels_last": lambda: channels_last_model.case("eight_channels", np.float16)[:2],
}


def between(model):
    """`model` with X doubled before it and Y behind it, in float32 at its ends: Add has no float16 kernel."""
    graph = model.graph
    for node in graph.node:
        node.input[0], node.output[0] = "X16", "Y16"
    graph.node.insert(0, helper.make_node("Cast", ["X"], ["X_cast"], to=TensorProto.FLOAT16))
    graph.node.insert(1, helper.make_node("Add", ["X_cast", "X_cast"], ["X16"]))
    graph.node.append(helper.make_node("Add", ["Y16", "Y16"], ["Y_sum"]))
    graph.node.append(helper.make_node("Cast", ["Y_sum"], ["Y"], to=TensorProto.FLOAT))
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("name", CASES)
def test_as_without_the_library(library, name):
    X, model = CASES[name]()
    compare(library, X, between(model))


def test_two_that_share_a_zero(library):
    """ONNX Runtime makes one initializer of equal scalars, and with two readers it stays behind a Cast."""
    X, model = mlp()
    model = between(model)
    first = next(node for node in model.graph.node if node.op_type == "DeftMlp")
    add = next(node for node in model.graph.node if node.output[0] == "Y_sum")
    second = onnx.NodeProto()
    second.CopyFrom(first)
    second.name, second.output[0], second.input[1] = "second", "Y16_second", "second_zero"
    for i, name in enumerate(second.input[2:], 2):
        second.input[i] = f"second_{name}"
    for tensor in list(model.graph.initializer):
        copy = model.graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = f"second_{tensor.name}"
    model.graph.node.insert(list(model.graph.node).index(add), second)
    add.input[1] = "Y16_second"
    compare(library, X, model)


def compare(library, X, model):
    """The CPU provider gives the same with the library and without."""
    results = []
    for path in (None, library):
        options = onnxruntime.SessionOptions()
        if path is not None:
            options.register_custom_ops_library(path)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results.append(session.run(["Y"], {"X": X.astype(np.float32)}))
    assert_same(*results, 2e-3)


def test_a_weight_in_float32_that_is_no_widened_one_is_refused(options):
    _, model = gemm("half")
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name))
    with pytest.raises(Exception, match="type of input W does not match format 'half'"):
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
