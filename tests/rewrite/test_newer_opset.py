"""Models of opsets before 13: brought to 13 where weights are to be packed, and left where that cannot be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from generator import Builder
from models import distance, model, packed_products, run
from small_networks import with_a_branch

import deftonnx
from deftonnx.model import apart
from deftonnx.rewrite.newer_opset import standard_opset, with_newer_opset

CONVOLUTIONS = """graph (float[N,3,16,16] x) => (float[N,10] y)
<float[16,3,3,3] stem, float[16] b, float[32,16,3,3] body, float[32,16,1,1] skip, float[32,10] head, float[10] c> {
    [stem] a = Conv <pads = [1,1,1,1]> (x, stem, b)
    r = Relu (a)
    [body] d = Conv <pads = [1,1,1,1], strides = [2,2]> (r, body)
    [skip] s = Conv <strides = [2,2]> (r, skip)
    sum = Add (d, s)
    e = Relu (sum)
    p = GlobalAveragePool (e)
    f = Flatten (p)
    [head] y = Gemm (f, head, c)
}"""
PARTS = {
    "clip": (7, "z = Clip <min = 0.0, max = 6.0> (a)"),
    "squeeze": (11, "b = Unsqueeze <axes = [1]> (a) z = Squeeze <axes = [1]> (b)"),
    "split": (11, "b, c = Split <axis = 1, split = [16, 16]> (a) z = Concat <axis = 1> (c, b)"),
    "softmax": (11, "z = Softmax <axis = 1> (a)"),
    "dropout": (11, "z = Dropout <ratio = 0.5> (a)"),
    "sum": (11, "b = ReduceSum <axes = [1], keepdims = 1> (a) z = Sub (a, b)"),
    "batch_norm": (8, "z = BatchNormalization (a, scale, shift, mean, variance)"),
    "contrib": (12, "z = com.microsoft.Gelu (a)"),
}
DENSE16 = {"preset": "dense16", "decide_by": "nothing", "measure": False, "density": 1}


def data(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_convolutions_are_packed_as_in_newer_models(opset):
    old, new = (model(CONVOLUTIONS, opset=version) for version in (opset, 13))
    x = data(8, 3, 16, 16)
    results = [deftonnx.optimize(proto, calib_data=x, **DENSE16) for proto in (old, new)]
    assert operators(results[0].model) == operators(results[1].model)
    assert operators(results[0].model).count("DeftConv") == 3
    assert standard_opset(results[0].model) == 13
    assert distance(*(run(proto, {"x": x})[0] for proto in (results[0].model, old))) <= 1e-2
    again = deftonnx.optimize(old, calib_data=x, plan=results[0].plan, measure=False)
    assert again.model.SerializeToString() == results[0].model.SerializeToString()


@pytest.mark.parametrize("name", list(PARTS))
def test_operators_that_changed(name):
    opset, text = PARTS[name]
    values = {"variance": np.linspace(0.5, 2, 32, dtype=np.float32)} if name == "batch_norm" else {}
    constants = "float[16,32] w, float[32,8] v" + ", float[32] scale, float[32] shift, float[32] mean" * bool(values)
    constants += ", float[32] variance" * bool(values)
    graph = f"graph (float[N,16] x) => (float[N,8] y) <{constants}> {{ a = MatMul (x, w) {text} y = MatMul (z, v) }}"
    old = model(graph, opset=opset, **values)
    result = deftonnx.optimize(old, calib_data=data(32, 16), **DENSE16)
    assert packed_products(result.model) == 2
    assert distance(*(run(proto, {"x": data(5, 16)})[0] for proto in (result.model, old))) <= 1e-2


@pytest.mark.parametrize("seed", [seed for seed in range(40) if Builder(seed).opset < 13][:8])
def test_generated_networks(seed):
    old = Builder(seed).build(steps=10)
    rng = np.random.default_rng(seed)
    feed = {}
    for value in old.graph.input:
        shape = [d.dim_value or 3 for d in value.type.tensor_type.shape.dim]
        feed[value.name] = rng.standard_normal(shape).astype(np.float32)
    result = deftonnx.optimize(old, calib_data=feed, **DENSE16)
    assert standard_opset(result.model) == 13
    for got, want in zip(run(result.model, feed), run(old, feed), strict=True):
        assert distance(got, want) <= 2e-2


def test_what_stays():
    old = model(CONVOLUTIONS, opset=11)
    parts = apart(old)
    parts.shell.graph.node[0].doc_string = "the first"
    newer = with_newer_opset(parts)
    assert newer.weights is parts.weights
    assert [t.name for t in newer.shell.graph.initializer] == [t.name for t in old.graph.initializer]
    assert list(newer.shell.graph.node) == list(parts.shell.graph.node)
    assert list(newer.shell.graph.input) == list(old.graph.input)


@pytest.mark.parametrize("options", [{}, {"portable": True, "precision": "16-bit"}])
def test_nothing_to_pack(options):
    result = deftonnx.optimize(model(CONVOLUTIONS, opset=11), measure=False, **options)
    assert standard_opset(result.model) == 11


def test_models_that_are_left():
    old = with_a_branch(11)
    result = deftonnx.optimize(old, format="half", measure=False)
    assert standard_opset(result.model) == 11
    assert any("stays at opset 11" in warning and "control flow" in warning for warning in result.report.warnings)
    assert all("opset 13" in left.reason for left in result.report.left_unpacked)
