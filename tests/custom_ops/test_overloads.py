"""Function bodies are overloads of one name, and all of them are the library's one operator."""

import attention_model
import channels_last_model
import numpy as np
import onnx
import pool_model
import pytest
from conv_model import conv_case, conv_model
from gemm_model import gemm_chain, gemm_model
from onnxruntime import InferenceSession

from deftonnx.formats import pack_weight
from deftonnx.formats.activation import ACTIVATIONS
from deftonnx.formats.conv_function import Window


def gemm():
    X = np.ones((2, 16), np.float32)
    return gemm_model(X, pack_weight(np.eye(16, dtype=np.float32), "half"), np.zeros(16, np.float32))


def conv():
    window = Window.of((3, 3))
    X, packed, bias, _ = conv_case(0, (5, 5), 8, 8, window, "half")
    return conv_model(X, packed, bias, window)


MODELS = {
    "DeftGemm": gemm,
    "DeftConv": conv,
    "DeftPool": lambda: pool_model.case("normalise_far", np.float32)[1],
    "DeftChannelsLast": lambda: channels_last_model.case("three_channels", np.float32)[1],
    "DeftAttention": lambda: attention_model.case((2, 3, 2, 8), "no_bias", np.float32)[1],
}


def run_operators(model, options, folder):
    """The operators that a CPU session of `model` runs, and the session."""
    options.optimized_model_filepath = str(folder / "run.onnx")
    session = InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node], session


@pytest.mark.parametrize("operator", MODELS)
def test_a_node_with_an_overload_is_the_operator(operator, options, tmp_path):
    model = MODELS[operator]()
    model.graph.node[0].overload = model.functions[0].overload = "7"
    model.ir_version = 10
    assert operator in run_operators(model, options, tmp_path)[0]


def test_a_model_may_have_any_number_of_bodies(options, tmp_path):
    combinations = [(name, activation) for name in ("half", "deft8:4", "deft16q") for activation in ACTIVATIONS]
    model, X, want = gemm_chain(combinations)
    assert len({node.overload for node in model.graph.node}) == len(combinations)
    operators, session = run_operators(model, options, tmp_path)
    assert operators == ["DeftGemm"] * len(combinations)
    np.testing.assert_allclose(session.run(None, {"X": X})[0], want, rtol=1e-4, atol=1e-5)
