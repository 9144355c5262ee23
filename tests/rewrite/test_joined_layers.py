"""Small layers that follow each other become one node, with the same results; others stay, and the report says why."""

import json

import numpy as np
import onnx
import pytest
from models import feed_for, model
from models import run as outputs

import deftonnx
from deftonnx.formats.mlp_function import attributes_of
from deftonnx.plan import Plan
from deftonnx.rewrite.joined_layers import WIDEST, WIDEST_X

TOWER = """g (float[N,{X}] x) => (float[N,{C}] y)
    <float[{X},{A}] a, float[{A}] ab, float[{A},{B}] b, float[{B}] bb, float[{B},{C}] c> {{
    [one] p = Gemm (x, a, ab) q = Relu (p) [two] r = Gemm (q, b, bb) s = Tanh (r) [three] y = MatMul (s, c) }}"""
CUDA = {"target": "cuda", "density": 1.0, "format": "half", "precision": "16-bit", "decide_by": "nothing"}


def tower(X=40, A=32, B=24, C=10):
    return model(TOWER.format(X=X, A=A, B=B, C=C))


def optimised(proto, **options):
    feed = feed_for(proto, N=6)
    return deftonnx.optimize(proto, calib_data=feed, measure=False, **{**CUDA, **options}), feed


def operators(result):
    return [node.op_type for node in result.model.graph.node]


def check(result, proto, feed, limit=5e-3):
    (got,), (want,) = outputs(result.model, feed), outputs(proto, feed)
    assert got.dtype == want.dtype
    assert np.linalg.norm(got - want) <= limit * np.linalg.norm(want)


@pytest.mark.parametrize("form", ["half", "deft16", "deft8:4", "deft8:auto"])
def test_a_tower_is_one_node(form):
    proto = tower()
    result, feed = optimised(proto, format=form)
    assert operators(result) == ["DeftMlp"]
    attributes = attributes_of(result.model.graph.node[0])
    assert attributes["widths"] == [40, 32, 24, 10]
    assert attributes["activations"] == "relu tanh none"
    assert (attributes["element_type"], attributes["output_type"]) == (10, 1)
    check(result, proto, feed, 0.1 if form.startswith("deft8") else 5e-3)


def test_the_report_says_what_was_joined():
    proto = tower()
    result, _ = optimised(proto)
    (node,) = result.model.graph.node
    assert {row.name: row.joined for row in result.report.layers} == dict.fromkeys(("one", "two", "three"), node.name)
    assert not result.report.left_apart
    parameters = 40 * 32 + 32 + 32 * 24 + 24 + 24 * 10
    assert result.report.after.parameters == parameters
    content = json.loads(result.report.to_json())
    assert content["layers"][0]["joined"] == node.name
    assert content["left_apart"] == []


@pytest.mark.parametrize(
    ("sizes", "widths", "apart"),
    [
        ({"A": WIDEST + 8}, [[WIDEST + 8, 24, 10]], ["one"]),
        ({"B": WIDEST + 8}, [], ["two"]),
        ({"X": WIDEST_X + 8}, [[32, 24, 10]], ["one"]),
        ({"X": WIDEST_X}, [[WIDEST_X, 32, 24, 10]], []),
    ],
)
def test_large_layers_stay(sizes, widths, apart):
    proto = tower(**sizes)
    result, feed = optimised(proto)
    joined = [node for node in result.model.graph.node if node.op_type == "DeftMlp"]
    assert [attributes_of(node)["widths"] for node in joined] == widths
    assert [refusal.name for refusal in result.report.left_apart] == apart
    assert all("larger than" in refusal.reason for refusal in result.report.left_apart)
    check(result, proto, feed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h = Gemm (x, a) r = Relu (h) p = MatMul (r, b) q = MatMul (r, b) y = Add (p, q)", 0),  # read twice
        ("h = Gemm (x, a) y = MatMul (h, b) z = Relu (h)", 0),  # an output of the graph
        ("h = Gemm (x, a) s = Softmax (h) y = MatMul (s, b)", 0),  # not an activation
        ("h = Gemm (x, a) r = MatMul (h, s) t = Add (r, h) y = MatMul (t, b)", 0),  # a residual
        ("h = Gemm (x, a) r = Relu (h) t = MatMul (r, s) y = MatMul (t, b)", 1),
    ],
)
def test_what_follows_each_other(text, expected):
    head = "g (float[N,32] x) => (float[N,8] y{}) <float[32,16] a, float[16,8] b, float[16,16] s> {{ {} }}"
    proto = model(head.format(", float[N,16] z" if "z =" in text else "", text))
    result, feed = optimised(proto)
    assert operators(result).count("DeftMlp") == expected
    for got, want in zip(outputs(result.model, feed), outputs(proto, feed), strict=True):
        assert np.linalg.norm(got - want) <= 5e-3 * np.linalg.norm(want)


@pytest.mark.parametrize(
    "options",
    [
        {"target": "any"},
        {"format": "deft16q"},
        {"format": "fp8"},
        {"unpack": False},
        {"precision": "keep"},
        {"format": "fp32"},
    ],
    ids=str,
)
def test_where_no_kernel_serves(options):
    proto = tower()
    if options == {"target": "any"}:
        options = {**options, "precision": "keep"}
    result, feed = optimised(proto, **options)
    assert "DeftMlp" not in operators(result)
    check(result, proto, feed, 0.2)


def test_kept_blocks_stay():
    proto = tower(X=64, A=64, B=64)
    result, _ = optimised(proto, density=0.5, granularity="block:16", keep_last=False, absorb=False)
    attributes = {n.name: {a.name: a.i for a in n.attribute} for n in result.model.graph.node}
    assert attributes["two"]["block"]
    assert attributes["three"]["block"]


def test_bfloat16_between_layers():
    proto = tower()
    result, _ = optimised(proto, precision="keep", io_types="bfloat16", format="deft16")
    assert operators(result).count("DeftMlp") == 1
    node = next(node for node in result.model.graph.node if node.op_type == "DeftMlp")
    assert attributes_of(node)["element_type"] == onnx.TensorProto.BFLOAT16


def test_a_plan_is_replayed():
    proto = tower()
    result, feed = optimised(proto)
    again = deftonnx.optimize(proto, plan=result.plan, calib_data=feed, measure=False)
    assert again.model == result.model
    assert again.plan.to_json() == result.plan.to_json()
    content = json.loads(result.plan.to_json())
    for entry in content["layers"]:
        del entry["joined"]
    apart = deftonnx.optimize(proto, plan=Plan.from_json(json.dumps(content)), calib_data=feed, measure=False)
    assert operators(apart).count("DeftGemm") == 3
    assert {refusal.reason for refusal in apart.report.left_apart} == {"the plan says so"}
    check(apart, proto, feed)


def test_a_second_run_keeps_the_plan_of_the_first():
    proto = model("""g (float[N,3,8,8] x) => (float[N,10] y) <float[16,3,3,3] k, float[16,32] a, float[32,10] b> {
        [conv] c = Conv <pads=[1,1,1,1]> (x, k) r = Relu (c) p = GlobalAveragePool (r) f = Flatten (p)
        [one] h = MatMul (f, a) s = Relu (h) [two] y = MatMul (s, b) }""")
    first, feed = optimised(proto)
    assert operators(first).count("DeftMlp") == 1
    again = deftonnx.optimize(first.model, calib_data=feed, measure=False, **CUDA)
    assert operators(again).count("DeftMlp") == 1
    entries = {entry.name: entry for entry in again.plan.layers}
    assert entries["one"].format == entries["two"].format == "half"
    assert entries["one"].joined == entries["two"].joined == first.model.graph.node[-1].name
    assert again.report.after.macs == 16 * 32 + 32 * 10  # a DeftConv counts nothing
    check(again, proto, feed)


def test_a_model_in_float16_is_one_node():
    proto = model(TOWER.replace("float[", "float16[").format(X=40, A=32, B=24, C=10))
    result, feed = optimised(proto)
    assert operators(result) == ["DeftMlp"]
    attributes = attributes_of(result.model.graph.node[0])
    assert attributes["element_type"] == attributes["output_type"] == onnx.TensorProto.FLOAT16
    check(result, proto, feed, 1e-2)
