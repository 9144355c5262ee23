"""One-node DeftAttention models and the float64 arithmetic they are compared with."""

import numpy as np
import onnx
import onnxruntime
from gemm_model import ONNX_TYPE, ort_value, to_array
from onnx import helper

from deftonnx.formats.attention_function import OPERATOR, attach_attention_functions, attention_attributes

# batch, length, heads, head size
SHAPES = {
    "one_key": (2, 1, 3, 8),
    "whole_steps": (3, 128, 2, 64),
    "vit": (2, 197, 3, 64),
    "end_of_a_step": (2, 65, 2, 32),
    "short": (5, 9, 4, 16),
    "long": (1, 517, 2, 64),
    "wide": (2, 75, 2, 56),
    "between_sizes": (1, 130, 2, 40),
    "many_heads": (17, 70, 12, 64),
}
# by name: which of batch, heads and rows the bias differs in
BIASES = {"no_bias": None, "rows": (1, 0, 1), "keys": (1, 0, 0), "all": (1, 1, 1), "positions": (0, 1, 1)}


def case(shape, bias, dtype, *, opset=17, seed=0, compute="auto"):
    """X, the bias or None, a model with free batch and length, and Y in float64."""
    batch, length, heads, size = shape
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((batch, length, 3 * heads * size)).astype(dtype)
    values, scale = None, 1 / np.sqrt(size)
    if BIASES[bias] is not None:
        full = (batch, heads, length)
        own = [n if differs else 1 for n, differs in zip(full, BIASES[bias], strict=True)]
        values = rng.standard_normal((*own, length))
        hidden = rng.random(values.shape) < 0.3
        hidden[..., 0] = False
        values = np.where(hidden, -np.inf, values).astype(dtype)
    return X, values, model(X, values, heads, size, scale, opset, compute), reference(X, values, heads, size, scale)


def model(X, bias, heads, size, scale, opset=17, compute="auto"):
    """One DeftAttention with inputs X and, if given, bias."""
    kind = ONNX_TYPE[X.dtype]
    names = ["X", "bias"][: 1 if bias is None else 2]
    inputs = [
        helper.make_tensor_value_info(name, kind, [None] * rank) for name, rank in zip(names, (3, 4), strict=False)
    ]
    attributes = attention_attributes(heads, size, scale, kind, compute)
    node = helper.make_node(OPERATOR, names, ["Y"], "layer", domain="ai.deftonnx", **attributes)
    graph = helper.make_graph([node], "one_layer", inputs, [helper.make_tensor_value_info("Y", kind, [None] * 3)])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return attach_attention_functions(made)


def reference(X, bias, heads, size, scale):
    """Y (batch, length, features) in float64; zeros where all keys of a row are masked."""
    batch, length, _ = X.shape
    parts = X.astype(np.float64).reshape(batch, length, 3, heads, size).transpose(2, 0, 3, 1, 4)
    scores = parts[0] @ parts[1].swapaxes(-1, -2) * scale
    if bias is not None:
        scores = scores + bias.astype(np.float64)
    largest = scores.max(-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isinf(largest), 0, largest))
    total = powers.sum(-1, keepdims=True)
    weights = powers / np.where(total == 0, 1, total)
    return (weights @ parts[2]).transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


def run(model, X, bias, options=None, providers=("CPUExecutionProvider",)):
    """Y of `model` as an array of its own type."""
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(providers))
    feeds = {"X": ort_value(X), **({} if bias is None else {"bias": ort_value(bias)})}
    return to_array(session.run_with_ort_values(["Y"], feeds)[0])
