"""The names that the library knows an operator by, one for each function body of a model."""

import attention_model
import channels_last_model
import numpy as np
import onnx
import pool_model
import pytest
from conv_model import conv_case, conv_model
from gemm_model import gemm_model
from onnxruntime import InferenceSession

from deftonnx.formats import pack_weight
from deftonnx.formats.conv_function import Window
from deftonnx.formats.operator_function import MOST_BODIES


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
    "DeftAttention": lambda: attention_model.case((2, 3, 2, 8), "no_bias", np.float32)[2],
}


@pytest.mark.parametrize("operator", MOST_BODIES)
def test_all_names_of_bodies_are_known_and_others_run_their_body(operator, options, tmp_path):
    most = MOST_BODIES[operator]
    for number in (most, most + 1):
        model = MODELS[operator]()
        model.graph.node[0].op_type = model.functions[0].name = f"{operator}_{number}"
        options.optimized_model_filepath = str(tmp_path / f"{number}.onnx")
        InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        run = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
        assert (f"{operator}_{number}" in run) == (number == most)
