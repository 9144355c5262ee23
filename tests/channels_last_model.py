"""One-node DeftChannelsLast models and what they must give, bit by bit."""

import numpy as np
from gemm_model import ONNX_TYPE
from onnx import helper

from deftonnx.formats.channels_last_function import (
    OPERATOR,
    attach_channels_last_functions,
    channels_last_attributes,
)

# image, channels
IMAGES = {
    "three_channels": ((9, 7), 3),
    "one_channel": ((28, 28), 1),
    "eight_channels": ((6, 5), 8),
    "whole_groups": ((5, 6), 40),
    "many_channels": ((5, 6), 37),
    "one_axis": ((301,), 5),
}


def case(name, dtype, *, batch=3, opset=17):
    """X, a model of one DeftChannelsLast with free batch and image, and Y."""
    image, channels = IMAGES[name]
    X = np.random.default_rng(0).standard_normal((batch, channels, *image)).astype(dtype)
    element_type = ONNX_TYPE[X.dtype]
    tensors = [helper.make_tensor_value_info(name, element_type, [None] * X.ndim) for name in "XY"]
    attributes = channels_last_attributes(len(image), element_type)
    node = helper.make_node(OPERATOR, ["X"], ["Y"], "layer", domain="ai.deftonnx", **attributes)
    graph = helper.make_graph([node], "one_layer", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return X, attach_channels_last_functions(model), np.moveaxis(X, 1, -1)
