"""What is not a linear layer to us is recognised and left alone, with the reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import model, prepare
from onnx import parser

from deftonnx.layers import LinearLayer, Refusal, find_layers
from deftonnx.rewrite.normalise import import_model, normalise


def head(x: str, y: str) -> str:
    """A template of a model with an input `x` and an output `y` of these types."""
    return f"graph ({x} x{{more}}) => ({y} y) <{{weights}}> {{{{ {{nodes}} }}}}"


IMAGE = head("float[N,4,6,6]", "float[a,b,c,d]")
MATRIX = head("float[N,6]", "float[a,b]")
SEQUENCE = head("float[3,N,6]", "float[a,b,c,d]")
REFUSED = {
    "depthwise": (IMAGE, "y = Conv <group = 4> (x, w)", "float[4,1,3,3] w", "", "depthwise"),
    "depthwise_multiplier": (IMAGE, "y = Conv <group = 4> (x, w)", "float[8,1,3,3] w", "", "depthwise"),
    "depthwise_transpose": (IMAGE, "y = ConvTranspose <group = 4> (x, w)", "float[4,2,3,3] w", "", "depthwise"),
    "conv_weight": (IMAGE, "y = Conv (x, w)", "", ", float[5,4,3,3] w", "its weight is not constant"),
    "conv_bias": (IMAGE, "y = Conv (x, w, b)", "float[5,4,3,3] w", ", float[5] b", "its bias is not constant"),
    "gemm_bias": (MATRIX, "y = Gemm (x, w, b)", "float[6,5] w", ", float[5] b", "its bias is not constant"),
    "gemm_row_bias": (
        head("float[3,6]", "float[a,b]"),
        "y = Gemm (x, w, b)",
        "float[6,5] w, float[3,1] b",
        "",
        "its bias differs",
    ),
    "gemm_first_operand": (
        MATRIX,
        "y = Gemm <transB = 1> (w, x)",
        "float[5,6] w",
        "",
        "its weight is the first operand",
    ),
    "integer_matmul": (
        head("int32[N,6]", "int32[a,b]"),
        "y = MatMul (x, w)",
        "int32[6,5] w",
        "",
        "its weight has type int32",
    ),
    "vector_weight": (head("float[N,6]", "float[a]"), "y = MatMul (x, w)", "float[6] w", "", "its weight is a vector"),
    "vector_input": (head("float[6]", "float[a]"), "y = MatMul (w, x)", "float[5,6] w", "", "its input is a vector"),
    "einsum": (MATRIX, 'y = Einsum <equation = "ij,jk->i"> (x, w)', "float[6,5] w", "", "Einsum"),
    "lstm": (SEQUENCE, "y = LSTM <hidden_size = 2> (x, w, r)", "float[1,8,6] w, float[1,8,2] r", "", "recurrent"),
    "gru": (SEQUENCE, "y = GRU <hidden_size = 2> (x, w, r)", "float[1,6,6] w, float[1,6,2] r", "", "recurrent"),
    "rnn": (SEQUENCE, "y = RNN <hidden_size = 2> (x, w, r)", "float[1,2,6] w, float[1,2,2] r", "", "recurrent"),
    "quantised_matmul": (head("uint8[N,6]", "int32[a,b]"), "y = MatMulInteger (x, w)", "int8[6,5] w", "", "quantised"),
    "quantised_conv": (
        head("uint8[N,4,6,6]", "int32[a,b,c,d]"),
        "y = ConvInteger (x, w)",
        "uint8[5,4,3,3] w",
        "",
        "quantised",
    ),
    "other_domain": (MATRIX, "y = com.microsoft.Gemm (x, w)", "float[6,5] w", "", "domain 'com.microsoft'"),
    "no_outputs": (MATRIX, "y = Gemm (x, w)", "float[6,0] w", "", "its weight is empty"),
    "no_features": (head("float[N,0]", "float[a,b]"), "y = MatMul (x, w)", "float[0,5] w", "", "its weight is empty"),
    "wrong_groups": (IMAGE, "y = Conv <group = 3> (x, w)", "float[8,4,1,1] w", "", "does not divide into 3 groups"),
    "no_groups": (IMAGE, "y = Conv <group = 0> (x, w)", "float[8,4,1,1] w", "", "does not divide into 0 groups"),
    "fused": (MATRIX, "y = com.microsoft.FusedMatMul <alpha = 2.0> (x, w)", "float[6,5] w", "", "already fused"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    text, nodes, weights, more, reason = REFUSED[name]
    graph = import_model(model(text.format(nodes=f"[it] {nodes}", weights=weights, more=more)))
    normalise(graph)
    found = find_layers(graph)
    assert len(found) == 1
    assert isinstance(found[0], Refusal)
    assert found[0].name == "it"
    assert reason in found[0].reason


@pytest.mark.parametrize(
    "nodes",
    ["y = MatMul (x, x)", "y = Gemm (x, x)", "y = Relu (x)", "z = MatMul (w, w) y = Add (x, z)"],
)
def test_without_weights_there_is_nothing_to_say(nodes: str) -> None:
    graph = import_model(model(f"graph (float[6,6] x) => (float[6,6] y) <float[6,6] w> {{ {nodes} }}"))
    normalise(graph)
    assert find_layers(graph) == []


BODIES = {
    "If": "y = If (c) <then_branch: graph = t () => (float[N,5] u) { [inner] u = MatMul (x, w) },"
    " else_branch: graph = e () => (float[N,5] v) { [other] v = MatMul (x, w) }>",
    "Loop": "y = Loop (trips, go, start) <body: graph = b (int64 i, bool g, float[N,5] p) => (bool d, float[N,5] q)"
    " { d = Identity (g) [inner] m = MatMul (x, w) q = Add (p, m) }>",
    "Scan": "z, s = Scan (start, x) <num_scan_inputs = 1,"
    " body: graph = b (float[5] p, float[6] r) => (float[5] q, float[5] o)"
    " { [inner] m = MatMul (r, w) q = Add (p, m) o = Identity (q) }> y = Identity (s)",
}


@pytest.mark.parametrize("op", BODIES)
def test_inside_a_body(op: str) -> None:
    start = "float[5] start" if op == "Scan" else "float[2,5] start"
    inputs = "float[2,6] x, bool c" if op == "If" else "float[2,6] x"
    extra = "" if op == "If" else f", int64 trips, bool go, {start}"
    proto = model(
        f"graph ({inputs}) => (float[2,5] y) <float[6,5] w{extra}> {{ {BODIES[op]} }}".replace("[N", "[2"),
        trips=np.array(2),
        go=np.array(True),
    )
    graph = import_model(proto)
    normalise(graph)
    found = find_layers(graph)
    assert {item.name for item in found} == ({"inner", "other"} if op == "If" else {"inner"})
    assert all(isinstance(item, Refusal) and f"inside the body of {op}" in item.reason for item in found)


def test_inside_a_local_function() -> None:
    proto = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17, "local": 1]>
        graph (float[2,6] x, float[6,5] w) => (float[2,5] y) { y = local.Project (x, w) }
        <domain: "local", opset_import: ["": 17]>
        Project (a, b) => (c) { [inner] c = MatMul (a, b) }
        """
    )
    found = find_layers(import_model(proto))
    assert [(item.name, item.reason) for item in found] == [("inner", "inside the local function 'Project'")]


def test_layer_and_refusals_come_in_graph_order() -> None:
    text = """
    graph (float[N,4,6,6] x) => (float[N,5,4,4] y) <float[4,1,1,1] d, float[5,4,3,3] w> {
        [one] a = Conv <group = 4> (x, d)
        [two] y = Conv (a, w)
    }"""
    found = find_layers(import_model(model(text)))
    assert [(item.name, type(item) is Refusal) for item in found] == [("one", True), ("two", False)]


@pytest.mark.parametrize("kind", [onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT8E4M3FN])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv"])
def test_weights_of_types_we_cannot_compute_with(op: str, kind: int) -> None:
    shape = [5, 6, 1, 1] if op == "Conv" else [6, 5]
    x_shape = ["N", 6, 3, 3] if op == "Conv" else ["N", 6]
    size = 2 if kind == onnx.TensorProto.BFLOAT16 else 1
    w = onnx.helper.make_tensor("w", kind, shape, bytes(30 * size), raw=True)
    node = onnx.helper.make_node(op, ["x", "w"], ["y"], name="it")
    x, y = (onnx.helper.make_tensor_value_info(n, kind, s) for n, s in (("x", x_shape), ("y", [None] * len(x_shape))))
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y], [w]), opset_imports=[onnx.helper.make_opsetid("", 19)]
    )
    graph, layers = prepare(proto)
    assert layers == []
    assert [type(item) for item in find_layers(graph)] == [Refusal]


def test_transpose_with_one_output_a_group_is_a_layer() -> None:
    """Groups of several channels and one output each are not depthwise."""
    text = """
    graph (float[N,8,3,3] x) => (float[N,2,6,6] y) <float[8,1,2,2] w> {
        y = ConvTranspose <group = 2, strides = [2,2]> (x, w)
    }"""
    _, layers = prepare(model(text))
    assert [(layer.groups, layer.channels) for layer in layers] == [(2, 4)]
    assert isinstance(layers[0], LinearLayer)
