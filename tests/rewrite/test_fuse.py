"""Epilogues folded into DeftGemm: every activation as exporters write it, bias, residual, and what must stay apart."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from models import NEWEST_OPSET, assert_same, feed_for, model, prepare, run

from deftonnx.formats.gemm_function import is_gemm
from deftonnx.layers import LinearLayer, Refusal
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.fuse import fuse, is_deft_gemm, match
from deftonnx.rewrite.normalise import export_model, infer_shapes
from deftonnx.rewrite.pack import decode, pack, pack_weights
from deftonnx.rewrite.reserved import Reserved

ROOT_2 = math.sqrt(2)
NUMBERS = {
    "root": ROOT_2,
    "inv": 1 / ROOT_2,
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "zero": 0.0,
    "cubic": 0.044715,
    "slope": math.sqrt(2 / math.pi),
    "double": 2 * math.sqrt(2 / math.pi),
    "sixth": 1 / 6,
    "low": -0.3,
    "high": 0.7,
    "quick": 1.702,
}
CUBE = "q = Mul (y, y) c = Mul (q, y) "
INNER = "t = Mul (c, cubic) u = Add (y, t) v = Mul (u, slope) "
FUSED = {
    "relu": [("relu", "z = Relu (y)"), ("relu", "z = Max (y, zero)"), ("relu", "z = Clip (y, zero)")],
    "clip": [
        ("clip", "z = Clip (y, low, high)"),
        ("clip", "z = Clip (y, , high)"),
        ("clip", "a = Relu (y) z = Min (six, a)"),
        ("clip", "a = Relu (y) z = Clip (a, zero, six)"),
        ("clip", "a = Max (y, low) z = Min (a, high)"),
    ],
    "leaky_relu": [("leaky_relu", "z = LeakyRelu <alpha = 0.2> (y)"), ("leaky_relu", "z = LeakyRelu (y)")],
    "sigmoid": [("sigmoid", "z = Sigmoid (y)")],
    "tanh": [("tanh", "z = Tanh (y)")],
    "hard_sigmoid": [
        ("hard_sigmoid", "z = HardSigmoid (y)"),
        ("hard_sigmoid", "z = HardSigmoid <alpha = 0.25, beta = 0.4> (y)"),
        ("hard_sigmoid", "a = Add (y, three) b = Clip (a, zero, six) z = Div (b, six)"),
    ],
    "hard_swish": [
        ("hard_swish", "z = HardSwish (y)"),
        ("hard_swish", "a = HardSigmoid <alpha = 0.16666667, beta = 0.5> (y) z = Mul (a, y)"),
        ("hard_swish", "a = Add (three, y) b = Clip (a, zero, six) c = Mul (y, b) z = Div (c, six)"),
        ("hard_swish", "a = Add (y, three) b = Clip (a, zero, six) c = Mul (b, sixth) z = Mul (y, c)"),
    ],
    "silu": [("silu", "a = Sigmoid (y) z = Mul (y, a)"), ("silu", "a = Sigmoid (y) z = Mul (a, y)")],
    "swish": [
        ("swish", "a = Mul (y, quick) b = Sigmoid (a) z = Mul (y, b)"),
        ("swish", "a = Div (y, six) b = Sigmoid (a) z = Mul (b, y)"),
        ("swish", "z = com.microsoft.QuickGelu <alpha = 1.702> (y)"),
    ],
    "gelu": [
        ("gelu", "a = Div (y, root) e = Erf (a) b = Add (e, one) c = Mul (y, b) z = Mul (c, half)"),
        ("gelu", "a = Mul (inv, y) e = Erf (a) b = Add (one, e) c = Mul (b, half) z = Mul (c, y)"),
        ("gelu", "h = Mul (y, half) a = Mul (y, inv) e = Erf (a) b = Add (e, one) z = Mul (h, b)"),
        ("gelu", "h = Div (y, two) a = Div (y, root) e = Erf (a) b = Mul (e, h) z = Add (h, b)"),
    ],
    "gelu_tanh": [
        ("gelu_tanh", CUBE + INNER + "d = Tanh (v) a = Add (d, one) h = Mul (y, half) z = Mul (h, a)"),
        ("gelu_tanh", "c = Pow (y, three) " + INNER + "d = Tanh (v) a = Add (one, d) h = Mul (y, a) z = Mul (h, half)"),
        (
            "gelu_tanh",
            "q = Mul (y, y) t = Mul (q, cubic) u = Add (t, one) v = Mul (y, u) p = Mul (v, double)"
            " g = Sigmoid (p) z = Mul (y, g)",
        ),
    ],
}
CASES = [(name, text) for cases in FUSED.values() for name, text in cases]


def linear(tail: str, opset: int = 17, more: str = "", dtype: str = "float", extra: str = "") -> onnx.ModelProto:
    """x (N, 16) → y (N, 24) → `tail` → z."""
    used = [name for name in NUMBERS if any(f"{o}{name}{c}" in tail for o in "( " for c in ",)")]
    numbers = f", {dtype}[2,24] rows" if "rows" in tail else ""
    numbers += "".join(f", {dtype} {name}" for name in used)
    values = {name: np.array(NUMBERS[name]) for name in used}
    return model(
        f"graph ({dtype}[N,16] x{extra}) => ({dtype}[N,24] z{more})"
        f" <{dtype}[16,24] w, {dtype}[24] bias{numbers}> {{ [gemm] y = Gemm (x, w, bias) {tail} }}",
        opset=opset,
        **values,
    )


def packed(
    proto: onnx.ModelProto, name: str = "deft8:3", fusing: bool = True
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """`proto` with decoded weights, and with DeftGemm nodes."""
    graph, layers = prepare(proto)
    weights = pack_weights(layers, {layer.name: name for layer in layers}, set())
    decode(layers, weights, set())
    plain = export_model(graph, proto).whole()
    pack(graph, layers, weights, set())
    if fusing:
        fuse(graph)
    return plain, finish(graph, proto, {}).whole()


def attributes(proto: onnx.ModelProto) -> dict[str, object]:
    """Those of the only DeftGemm."""
    (node,) = [node for node in proto.graph.node if is_gemm(node.domain, node.op_type)]
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize(("name", "tail"), CASES, ids=[f"{n}_{i}" for i, (n, _) in enumerate(CASES)])
def test_an_activation_as_it_is_written(name: str, tail: str) -> None:
    proto = linear(tail)
    plain, small = packed(proto)
    onnx.checker.check_model(small, full_check=True)
    assert [node.op_type for node in small.graph.node] == ["DeftGemm"]
    assert attributes(small)["activation"] == name.encode()
    feed = feed_for(proto, N=64)
    assert_same(run(small, feed), run(plain, feed), 1e-6)


@pytest.mark.parametrize(
    ("name", "text", "opset"),
    [
        ("gelu", "z = Gelu (y)", 20),
        ("gelu_tanh", 'z = Gelu <approximate = "tanh"> (y)', 20),
        ("gelu", "z = com.microsoft.Gelu (y)", 17),
        ("silu", "z = Swish (y)", 24),
    ],
)
def test_activations_of_later_opsets(name: str, text: str, opset: int) -> None:
    if opset > NEWEST_OPSET:
        pytest.skip(f"the installed onnxruntime does not load opset {opset}")
    proto = linear(text, opset)
    plain, small = packed(proto)
    assert attributes(small)["activation"] == name.encode()
    feed = feed_for(proto, N=64)
    assert_same(run(small, feed), run(plain, feed), 1e-6)


def test_constants_rounded_to_float16() -> None:
    proto = linear(FUSED["gelu_tanh"][0][1], dtype="float16")
    plain, small = packed(proto, "half")
    assert attributes(small)["activation"] == b"gelu_tanh"
    feed = feed_for(proto, N=64)
    assert_same(run(small, feed), run(plain, feed), 5e-3)


@pytest.mark.parametrize(
    "tail",
    [
        "a = Div (y, two) e = Erf (a) b = Add (e, one) c = Mul (y, b) z = Mul (c, half)",
        "a = Div (y, root) e = Erf (a) b = Add (e, one) c = Mul (y, b) z = Mul (c, one)",
        "a = Sigmoid (y) b = Sigmoid (a) z = Mul (y, b)",
        "a = Add (y, three) b = Clip (a, zero, three) c = Mul (y, b) z = Div (c, six)",
        "z = Softmax (y)",
        "z = Elu (y)",
        "z = Mul (y, y)",
        "z = Add (y, y)",
        "z = Max (y, y)",
        "z = Div (one, y)",
        "z = HardSigmoid <alpha = 0.0> (y)",
    ],
)
def test_what_is_no_activation_stays(tail: str) -> None:
    proto = linear(tail)
    plain, small = packed(proto)
    assert attributes(small)["activation"] == b"none"
    feed = feed_for(proto, N=64)
    assert_same(run(small, feed), run(plain, feed), 1e-6)


@pytest.mark.parametrize(
    ("tail", "more", "reason"),
    [
        ("z = Relu (y)", ", float[N,24] y", "an output of the graph"),
        ("z = Relu (y) o = Neg (y)", ", float[N,24] o", "read elsewhere"),
        ("a = Sigmoid (y) z = Mul (y, a)", ", float[N,24] a", "read elsewhere"),
        ("z = Add (y, y)", "", "added to itself"),
        ("z = Add (y, rows)", "", "not one value"),
        ("z = Add (y, side)", "", "not known to have the shape"),
    ],
)
def test_refusals(tail: str, more: str, reason: str) -> None:
    extra = ", float[1,24] side" if "side" in tail else ""
    proto = linear(tail, more=more, extra=extra)
    graph, layers = prepare(proto)
    pack(graph, layers, pack_weights(layers, {"gemm": "half"}, set()), set())
    (node,) = filter(is_deft_gemm, graph.nodes)
    found = match(node, Reserved(graph))
    assert isinstance(found, Refusal)
    assert reason in found.reason
    assert not fuse(graph)


def test_bias_residual_and_activation_in_their_order() -> None:
    text = """graph (float[N,5,16] x, float[N,5,24] r) => (float[N,5,24] z, float[N,5,24] k)
        <float[16,24] w, float[24] b, float[1,1,24] c> {
        p = MatMul (x, w) s = Add (b, p) k = Neg (r) t = Add (k, s) u = Add (t, c) z = Relu (u) }"""
    proto = model(text)
    plain, small = packed(proto)
    assert [node.op_type for node in small.graph.node] == ["Neg", "DeftGemm"]
    assert len(small.graph.node[1].input) == 6
    feed = feed_for(proto)
    assert_same(run(small, feed), run(plain, feed), 1e-6)


def test_nothing_is_folded_behind_an_activation() -> None:
    proto = linear("a = Relu (y) z = Add (a, r)", extra=", float[N,24] r")
    plain, small = packed(proto)
    assert [node.op_type for node in small.graph.node] == ["DeftGemm", "Add"]
    feed = feed_for(proto)
    assert_same(run(small, feed), run(plain, feed), 1e-6)


def test_one_of_two_products_that_are_added_takes_the_other() -> None:
    proto = model("""graph (float[N,16] x) => (float[N,24] z) <float[16,24] w, float[16,24] v> {
        [a] p = MatMul (x, w) [b] q = MatMul (x, v) s = Add (p, q) z = Tanh (s) }""")
    plain, small = packed(proto)
    assert [len(node.input) for node in small.graph.node] == [4, 6]
    assert small.graph.node[1].name == "a"
    feed = feed_for(proto)
    assert_same(run(small, feed), run(plain, feed), 1e-6)


def test_a_product_that_a_branch_reads_stays() -> None:
    proto = model("""graph (float[N,16] x, bool c) => (float[N,24] z) <float[16,24] w> {
        [gemm] y = MatMul (x, w) r = Relu (y)
        z = If (c) <then_branch = t () => (float[N,24] a) { a = Abs (y) },
                    else_branch = e () => (float[N,24] b) { b = Neg (r) }> }""")
    plain, small = packed(proto)
    assert attributes(small)["activation"] == b"none"
    for choice in (True, False):
        feed = {**feed_for(proto), "c": np.array(choice)}
        assert_same(run(small, feed), run(plain, feed), 1e-6)


def test_equal_weights_are_stored_once() -> None:
    proto = model("""graph (float[N,16] x) => (float[N,16] z) <float[16,16] w> {
        a = MatMul (x, w) b = Relu (a) z = MatMul (b, w) }""")
    plain, small = packed(proto, "deft16")
    assert len({node.input[1] for node in small.graph.node}) == 1
    feed = feed_for(proto)
    assert_same(run(small, feed), run(plain, feed), 1e-6)


def layer_names(layers: list[LinearLayer]) -> list[str]:
    return [layer.name for layer in layers]


def test_fusing_twice_changes_nothing() -> None:
    graph, layers = prepare(linear("a = Sigmoid (y) z = Mul (y, a)"))
    pack(graph, layers, pack_weights(layers, dict.fromkeys(layer_names(layers), "half"), set()), set())
    infer_shapes(graph)
    assert fuse(graph)
    assert not fuse(graph)


def test_identities_and_dropout_are_no_obstacle() -> None:
    proto = linear("a = Identity (y) d = Dropout (a) z = Relu (d)")
    _, small = packed(proto)
    assert [node.op_type for node in small.graph.node] == ["DeftGemm"]
