"""One-node DeftAttention models and the float64 arithmetic they are compared with."""

import numpy as np
import onnx
import onnxruntime
from gemm_model import ONNX_TYPE, ort_value, to_array
from onnx import helper

from deftonnx.formats.attention_function import OPERATOR, attach_attention_functions, attention_attributes

NAMES = ("X", "bias", "rotary")
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
# by name: heads that share a key, whether it is causal, and what rotary embeddings differ in
KINDS = {
    "shared": (2, False, None),
    "causal": (1, True, None),
    "rotary": (1, False, "positions"),
    "decoder": (4, True, "positions"),
    "decoder_by_sample": (2, True, "samples"),
}
KIND_SHAPES = {
    "one_key": (2, 1, 4, 16),
    "whole_steps": (3, 128, 4, 64),
    "end_of_a_step": (2, 65, 4, 32),
    "between_sizes": (2, 130, 4, 48),
    "long": (1, 517, 4, 64),
    "large": (2, 197, 4, 128),
    "between_large_sizes": (3, 75, 8, 96),
}
# by name: which of batch, heads and rows the bias differs in
BIASES = {"no_bias": None, "rows": (1, 0, 1), "keys": (1, 0, 0), "all": (1, 1, 1), "positions": (0, 1, 1)}


def case(shape, bias, dtype, *, opset=17, seed=0, compute="auto", kind=(1, False, None)):
    """The inputs X, the bias or None, and rotary or None; a model with free batch and length, and Y in float64."""
    batch, length, heads, size = shape
    group, causal, turns = kind
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((batch, length, (heads + 2 * heads // group) * size)).astype(dtype)
    values, rotary, scale = None, None, 1 / np.sqrt(size)
    if BIASES[bias] is not None:
        full = (batch, heads, length)
        own = [n if differs else 1 for n, differs in zip(full, BIASES[bias], strict=True)]
        values = rng.standard_normal((*own, length))
        hidden = rng.random(values.shape) < 0.3
        hidden[..., 0] = False
        values = np.where(hidden, -np.inf, values).astype(dtype)
    if turns is not None:
        angles = rng.uniform(0, 7, (length if turns == "positions" else batch * length, size // 2))
        rotary = np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(dtype)
    attributes = attention_attributes(
        heads, size, scale, ONNX_TYPE[X.dtype], compute, num_kv_heads=heads // group, causal=causal
    )
    inputs = (X, values, rotary)
    return inputs, model(inputs, attributes, opset), reference(inputs, attributes)


def model(inputs, attributes, opset=17):
    """One DeftAttention with those inputs that are not None."""
    given = {name: value for name, value in zip(NAMES, inputs, strict=True) if value is not None}
    kinds = dict.fromkeys(given, attributes["output_type"])
    infos = [helper.make_tensor_value_info(name, kinds[name], [None] * given[name].ndim) for name in given]
    names = [name if name in given else "" for name in NAMES]
    while not names[-1]:
        names.pop()
    node = helper.make_node(OPERATOR, names, ["Y"], "layer", domain="ai.deftonnx", **attributes)
    outputs = [helper.make_tensor_value_info("Y", attributes["output_type"], [None] * 3)]
    graph = helper.make_graph([node], "one_layer", infos, outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return attach_attention_functions(made)


def reference(inputs, attributes):
    """Y (batch, length, features) in float64; zeros where all keys of a row are masked."""
    X, bias, rotary = inputs
    heads, shared, size = (attributes[name] for name in ("num_heads", "num_kv_heads", "head_size"))
    batch, length, _ = X.shape
    parts = X.astype(np.float64).reshape(batch, length, -1, size).transpose(0, 2, 1, 3)
    queries, keys, values = np.split(parts, [heads, heads + shared], axis=1)
    if rotary is not None:
        queries, keys = turned(queries, rotary), turned(keys, rotary)
    keys, values = (part.repeat(heads // shared, axis=1) for part in (keys, values))
    scores = queries @ keys.swapaxes(-1, -2) * attributes["scale"]
    if bias is not None:
        scores = scores + bias.astype(np.float64)
    if attributes["causal"]:
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    largest = scores.max(-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isinf(largest), 0, largest))
    total = powers.sum(-1, keepdims=True)
    weights = powers / np.where(total == 0, 1, total)
    return (weights @ values).transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


def turned(rows, rotary):
    """Rows (batch, heads, length, size), features i and i + size / 2 turned by their angles."""
    length, size = rows.shape[-2:]
    cosines, sines = np.split(rotary.astype(np.float64).reshape(-1, 1, length, size), 2, axis=-1)
    first, second = np.split(rows, 2, axis=-1)
    return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], -1)


def run(model, inputs, options=None, providers=("CPUExecutionProvider",)):
    """Y of `model` as an array of its own type."""
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(providers))
    feeds = {name: ort_value(value) for name, value in zip(NAMES, inputs, strict=True) if value is not None}
    return to_array(session.run_with_ort_values(["Y"], feeds)[0])
