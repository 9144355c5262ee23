"""Normalising computes the same, keeps what a model says about itself, and lets every odd model through."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import NEWEST_OPSET, assert_same, feed_for, model, operators, prepare, reduce, run, session, shape_of
from onnx import TensorProto, helper, numpy_helper, parser

from deftonnx.layers import find_layers
from deftonnx.rewrite.normalise import export_model, import_model, infer_shapes, normalise


def normalised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` after normalisation; normalising it again changes nothing more."""
    graph = import_model(proto)
    normalise(graph)
    result = export_model(graph, proto).whole()
    assert not normalise(import_model(result))
    return result


def assert_computes_the_same(proto: onnx.ModelProto, tolerance: float = 1e-5) -> onnx.ModelProto:
    """The normalised form, having checked its outputs and that the original is as it was."""
    before = proto.SerializeToString(deterministic=True)
    result = normalised(proto)
    assert proto.SerializeToString(deterministic=True) == before
    feed = feed_for(proto)
    assert_same(run(result, feed), run(proto, feed), tolerance)
    return result


NORM = "y = BatchNormalization <epsilon = 0.01> (a, s, t, m, v)"
NORM_WEIGHTS = "float[{n}] s, float[{n}] t, float[{n}] m, float[{n}] v"
IMAGE = "graph (float[N,4,6,6] x) => (float[N,{n},p,q] y)"
FOLDED = {
    "conv": (IMAGE, 5, "a = Conv (x, w)", "float[5,4,3,3] w"),
    "conv_bias": (IMAGE, 5, "a = Conv (x, w, b)", "float[5,4,3,3] w, float[5] b"),
    "conv_grouped": (IMAGE, 6, "a = Conv <group = 2> (x, w, b)", "float[6,2,3,3] w, float[6] b"),
    "conv_1d": ("graph (float[N,4,9] x) => (float[N,5,p] y)", 5, "a = Conv (x, w)", "float[5,4,3] w"),
    "depthwise": (IMAGE, 4, "a = Conv <group = 4> (x, w)", "float[4,1,3,3] w"),
    "depthwise_multiplier": (IMAGE, 8, "a = Conv <group = 4> (x, w, b)", "float[8,1,3,3] w, float[8] b"),
    "transpose": (IMAGE, 5, "a = ConvTranspose (x, w)", "float[4,5,3,3] w"),
    "transpose_grouped": (IMAGE, 6, "a = ConvTranspose <group = 2> (x, w, b)", "float[4,3,2,2] w, float[6] b"),
    "gemm": ("graph (float[N,4] x) => (float[N,5] y)", 5, "a = Gemm <alpha = 0.5> (x, w)", "float[4,5] w"),
    "gemm_bias": (
        "graph (float[N,4] x) => (float[N,5] y)",
        5,
        "a = Gemm <transB = 1, beta = 2.0> (x, w, b)",
        "float[5,4] w, float[1] b",
    ),
    "matmul": ("graph (float[N,4] x) => (float[N,5] y)", 5, "a = MatMul (x, w)", "float[4,5] w"),
    "matmul_bias": (
        "graph (float[N,4] x) => (float[N,5] y)",
        5,
        "p = MatMul (x, w) a = Add (b, p)",
        "float[4,5] w, float[5] b",
    ),
    "matmul_left": (
        "graph (float[N,4,3] x) => (float[N,5,3] y)",
        5,
        "p = MatMul (w, x) a = Add (b, p)",
        "float[5,4] w, float[5,1] b",
    ),
}


def norm_model(head: str, count: int, nodes: str, weights: str, opset: int = 17) -> onnx.ModelProto:
    """A model whose layer `nodes` is followed by a BatchNormalization."""
    text = f"{head.format(n=count)} <{weights}, {NORM_WEIGHTS.format(n=count)}> {{ {nodes} {NORM} }}"
    return model(text, opset=opset, v=np.linspace(0.3, 3, count))


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("opset", [9, 13, NEWEST_OPSET])
def test_batch_norm_is_folded(name: str, opset: int) -> None:
    if opset < 11 and name == "gemm":
        pytest.skip("Gemm had to have a bias")
    result = assert_computes_the_same(norm_model(*FOLDED[name], opset=opset))
    assert "BatchNormalization" not in operators(result)


def test_batch_norm_is_folded_into_one_of_two_layers_that_share_a_weight() -> None:
    text = f"""
    graph (float[N,4,6,6] x) => (float[N,4,6,6] y, float[N,4,6,6] z) <float[4,4,1,1] w, {NORM_WEIGHTS.format(n=4)}> {{
        a = Conv (x, w) {NORM} z = Conv (x, w)
    }}"""
    result = assert_computes_the_same(model(text, v=np.ones(4)))
    assert operators(result) == ["Conv", "Conv"]


KEPT = {
    "two_readers": ("a = Conv (x, w) z = Relu (a)", "z"),
    "layer_output_returned": ("a = Conv (x, w)", "a"),
    "after_an_activation": ("b = Conv (x, w) a = Relu (b) z = Neg (a)", "z"),
    "product_returned": ("p = MatMul (x, l) a = Add (p, c)", "p"),
}


@pytest.mark.parametrize("name", KEPT)
def test_batch_norm_stays_where_others_read_the_layer(name: str) -> None:
    nodes, output = KEPT[name]
    text = f"""
    graph (float[N,4,6,6] x) => (float[N,4,6,6] y, float[N,4,6,6] {output})
    <float[4,4,1,1] w, float[6,6] l, float[6] c, {NORM_WEIGHTS.format(n=4)}> {{ {nodes} {NORM} }}"""
    assert "BatchNormalization" in operators(assert_computes_the_same(model(text, v=np.ones(4))))


def test_batch_norm_on_another_axis_than_the_features_stays() -> None:
    text = f"""
    graph (float[N,4,6] x) => (float[N,4,4] y) <float[6,4] w, {NORM_WEIGHTS.format(n=4)}> {{
        a = MatMul (x, w) {NORM}
    }}"""
    assert "BatchNormalization" in operators(assert_computes_the_same(model(text, v=np.ones(4))))


def test_constants_are_folded() -> None:
    text = """
    graph (float[N,4] x) => (float[N,6] y) <float[6,4] w, float[6,4] v> {
        s = Add (w, v) t = Transpose (s)
        y = MatMul (x, t)
    }"""
    result = assert_computes_the_same(model(text))
    assert operators(result) == ["MatMul"]


@pytest.mark.parametrize(
    "nodes", ["y = Add (w, v) z = Relu (x)", "y = Identity (w) z = Relu (x)", "z = Add (x, w) y = Neg (v)"]
)
def test_constant_outputs_stay(nodes: str) -> None:
    text = f"graph (float[4] x) => (float[4] y, float[4] z) <float[4] w, float[4] v> {{ {nodes} }}"
    assert_computes_the_same(model(text))


def test_initializer_that_is_an_output_stays() -> None:
    text = "graph (float[N,4] x) => (float[N,3] y, float[4,3] w) <float[4,3] w> { y = MatMul (x, w) }"
    assert_computes_the_same(model(text))


def test_constant_nodes_of_the_original_are_left_as_they_were() -> None:
    text = "graph (float[3] x) => (float[3] y) { c = Constant <value = float[3] {1.0, 2.0, 3.0}> () y = Add (x, c) }"
    assert operators(assert_computes_the_same(model(text))) == ["Add"]


def test_dropout_and_identity_go() -> None:
    text = (
        "graph (float[N,4] x) => (float[N,3] y) <float[4,3] w> { a = Dropout (x) b = Identity (a) y = MatMul (b, w) }"
    )
    assert operators(assert_computes_the_same(model(text))) == ["MatMul"]


def test_identity_that_names_an_output_stays() -> None:
    text = "graph (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Identity (x) z = Relu (y) }"
    assert_computes_the_same(model(text))


def test_identity_read_in_a_branch() -> None:
    text = """
    graph (float[N,4] x, bool c) => (float[N,4] y) {
        i = Identity (x)
        y = If (c) <then_branch: graph = t () => (float[N,4] u) { u = Relu (i) },
                    else_branch: graph = e () => (float[N,4] v) { v = Neg (i) }>
    }"""
    assert_computes_the_same(model(text))


def test_nodes_get_unique_names() -> None:
    proto = model(
        "graph (float[4] x) => (float[4] y)"
        "{ [n] a = Relu (x) b = Neg (a) [n] c = Abs (b) [n_0] d = Abs (c) e = Neg (d) y = Relu (e) }"
    )
    names = [node.name for node in export_model(import_model(proto), proto).shell.graph.node]
    assert len(set(names)) == 6
    assert "" not in names
    assert names[0] == "n"
    assert names[3] == "n_0"


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_listed_as_inputs(ir_version: int) -> None:
    proto = model(
        "graph (float[N,8] x) => (float[N,3] y) <float[8,8] w, float[8,3] v>"
        "{ [a] p = MatMul (x, w) [b] y = MatMul (p, v) }",
        opset=8,
    )
    proto.ir_version = ir_version
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
    )
    onnx.checker.check_model(proto)
    graph, layers = prepare(proto)
    layers[1].kept[:, :, ::2] = False
    layers[1].store(layers[1].weight() * layers[1].kept.reshape(1, 8, 1), None)
    masked = export_model(graph, proto).whole()
    small = reduce(graph, layers, proto)
    onnx.checker.check_model(small)
    assert [i.name for i in small.graph.input] == ["x"]
    assert shape_of(small, "w") == (8, 4)
    feed = feed_for(proto)
    assert_same(run(small, feed), run(masked, feed))


def test_what_a_model_says_about_itself_is_kept() -> None:
    proto = model("graph (float[N,4] x, float[N] unused) => (float[N,4] y) { [r] y = Relu (x) }")
    proto.producer_name, proto.producer_version, proto.domain = "maker", "1.2", "org.example"
    proto.model_version, proto.doc_string = 7, "what it is"
    proto.metadata_props.add(key="k", value="v")
    proto.graph.doc_string = "the graph"
    proto.graph.node[0].doc_string = "the node"
    proto.graph.input[0].doc_string = "the input"
    proto.opset_import.add(domain="com.example", version=3)
    result = normalised(proto)
    result.graph.ClearField("value_info")
    for either in (result, proto):
        either.graph.node[0].ClearField("domain")  # empty or absent
    assert result == proto


def test_names_and_types_of_inputs_and_outputs_are_kept() -> None:
    text = "graph (float[N,C,H,W] x) => (float[N,a,b,c] y) <float[4,3,1,1] w> { y = Conv (x, w) }"
    proto = model(text)
    result = normalised(proto)
    assert list(result.graph.input) == list(proto.graph.input)
    assert list(result.graph.output) == list(proto.graph.output)


FUNCTIONS = """
<ir_version: 10, opset_import: ["": 18, "local": 1]>
graph (float[2,4] x) => (float[2,4] y) { a = local.Scale <factor = 3.0> (x) b = local.Scale (a) y = local.Twice (b) }
<domain: "local", opset_import: ["": 18]>
Scale <factor: float = 2.0> (a) => (c) {
    f = Constant <value_float: float = @factor> ()
    c = Mul (a, f)
}
<domain: "local", opset_import: ["": 18], overload: "">
Twice (a) => (c) {
    c = Add (a, a)
}
"""


def test_local_functions_are_kept() -> None:
    proto = parser.parse_model(FUNCTIONS)
    result = assert_computes_the_same(proto)
    assert list(result.functions) == list(proto.functions)


def test_function_overloads_are_kept() -> None:
    proto = parser.parse_model(FUNCTIONS)
    other = proto.functions.add()
    other.CopyFrom(proto.functions[1])
    other.overload, other.node[0].op_type = "square", "Mul"
    proto.graph.node[2].overload = "square"
    assert_computes_the_same(proto)


@pytest.mark.parametrize(
    ("op", "attribute", "kind"),
    [
        ("Constant", "value_ints", onnx.AttributeProto.INTS),
        ("Constant", "value_floats", onnx.AttributeProto.FLOATS),
        ("ReduceMean", "axes", onnx.AttributeProto.INTS),
    ],
)
def test_empty_list_attributes(op: str, attribute: str, kind: int) -> None:
    if op == "Constant":
        element = TensorProto.INT64 if kind == onnx.AttributeProto.INTS else TensorProto.FLOAT
        outputs = [helper.make_tensor_value_info("y", element, [0])]
        node = helper.make_node(op, [], ["y"])
    else:
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 3)]
        node = helper.make_node(op, ["x"], ["y"])
    node.attribute.add(name=attribute, type=kind)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 5])
    graph = helper.make_graph([node], "g", [x], outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = assert_computes_the_same(proto)
    if op != "Constant":
        assert list(result.graph.node[0].attribute) == list(node.attribute)


def test_empty_list_attribute_in_a_branch() -> None:
    text = """
    graph (float[N,4] x, bool c) => (float[a,b] y) {
        y = If (c) <then_branch: graph = t () => (float[a,b] u) { u = ReduceSum (x) },
                    else_branch: graph = e () => (float[a,b] v) { v = ReduceMean (x) }>
    }"""
    proto = model(text)
    node = proto.graph.node[0].attribute[1].g.node[0]
    node.attribute.add(name="axes", type=onnx.AttributeProto.INTS)
    result = assert_computes_the_same(proto)
    assert [a.name for a in result.graph.node[0].attribute[1].g.node[0].attribute] == ["axes"]


def test_sequences_come_through() -> None:
    text = """
    graph (float[N,4] x, int64 i) => (seq(float[N,4]) s, float[N,4] y) {
        r = Relu (x)
        s = SequenceConstruct (x, r)
        y = SequenceAt (s, i)
    }"""
    proto = model(text)
    result = normalised(proto)
    feed = {"x": feed_for(proto)["x"], "i": np.array(1, dtype=np.int64)}
    (got, y), (want, z) = run(result, feed), run(proto, feed)
    assert_same([*got, y], [*want, z])
    assert list(result.graph.output) == list(proto.graph.output)


def test_sequence_inputs_come_through() -> None:
    text = "graph (seq(float[2,4]) s, int64 i) => (float[2,4] y) { y = SequenceAt (s, i) }"
    proto = model(text)
    result = normalised(proto)
    feed = {"s": [np.ones((2, 4), np.float32)], "i": np.array(0, dtype=np.int64)}
    assert_same(run(result, feed), run(proto, feed))


def test_optional_types_come_through() -> None:
    text = """
    graph (optional(float[2,4]) o) => (float[2,4] y, bool h) {
        h = OptionalHasElement (o)
        y = OptionalGetElement (o)
    }"""
    proto = model(text)
    result = normalised(proto)
    assert list(result.graph.input) == list(proto.graph.input)
    feed = {"o": np.ones((2, 4), np.float32)}
    assert_same(run(result, feed), run(proto, feed))


def test_type_attributes_come_through() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        "graph (float[2,4] x) => (bool h) { o = Optional () h = OptionalHasElement (o) }"
    )
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 4]))
    proto.graph.node[0].attribute.append(helper.make_attribute("type", kind.optional_type.elem_type))
    result = normalised(proto)
    feed = {"x": np.ones((2, 4), np.float32)}
    assert_same(run(result, feed), run(proto, feed))


@pytest.mark.parametrize(
    "kind",
    [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2, TensorProto.INT4, TensorProto.UINT4],
)
def test_weights_of_odd_types_come_through_unchanged(kind: int) -> None:
    raw = np.random.default_rng(0).integers(0, 60, 32, dtype=np.uint8).tobytes()
    count = {TensorProto.BFLOAT16: 16, TensorProto.INT4: 64, TensorProto.UINT4: 64}.get(kind, 32)
    w = helper.make_tensor("w", kind, [count], raw, raw=True)
    nodes = [helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT), helper.make_node("Add", ["x", "c"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [count]) for name in "xy")
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [w]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    assert_computes_the_same(proto)


def test_quantised_model_comes_through() -> None:
    text = """
    graph (float[N,8] x) => (float[N,5] y) <float s, uint8 z, int8[8,5] w, int8 n> {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        v = DequantizeLinear (w, s, n)
        [fake] a = MatMul (d, v)
        [real] i = MatMulInteger (q, w, z, n)
        f = Cast <to = 1> (i)
        y = Add (a, f)
    }"""
    w = np.random.default_rng(0).integers(-100, 100, (8, 5))
    proto = model(text, s=np.array(0.1), z=np.array(128), w=w, n=np.array(0))
    assert_computes_the_same(proto)


@pytest.mark.parametrize("places", [[0, 5, 11], [[0, 0], [1, 2], [3, 2]]])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_sparse_initializer_is_made_dense(op: str, places: list[int] | list[list[int]]) -> None:
    proto = model(f"graph (float[N,4] x) => (float[N,3] y) <float[4,3] w> {{ y = {op} (x, w) }}")
    del proto.graph.initializer[:]
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    indices = numpy_helper.from_array(np.array(places, np.int64), "w_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    weights = assert_computes_the_same(proto).graph.initializer
    assert [(t.name, t.data_type) for t in weights] == [("w", TensorProto.FLOAT)]


def test_custom_operator_comes_through() -> None:
    text = "graph (float[N,4] x) => (float[N,3] y) <float[4,3] w> { a = com.microsoft.Gelu (x) y = MatMul (a, w) }"
    assert operators(assert_computes_the_same(model(text))) == ["Gelu", "MatMul"]


def test_loop_with_a_constant_from_outside() -> None:
    text = """
    graph (float[2,4] x) => (float[2,4] y) <int64 trips, bool go, float[4,4] w, float[4,4] v> {
        u = Add (w, v)
        y = Loop (trips, go, x) <body: graph = b (int64 i, bool c, float[2,4] p) => (bool d, float[2,4] q) {
            d = Identity (c)
            q = MatMul (p, u)
        }>
    }"""
    proto = model(text, trips=np.array(2), go=np.array(True))
    assert_computes_the_same(proto)
    graph = import_model(proto)
    normalise(graph)
    assert len(find_layers(graph)) == 1


def test_a_large_weight_that_is_transposed_at_run_time() -> None:
    """Above what general folding folds; a weight with another reader would be stored twice and stays."""
    text = "graph (float[N,3,600] x{more}) => (float[N,3,600] y) <float[600,600] w> {{ t = Transpose (w) {rest} }}"
    alone = model(text.format(more="", rest="y = MatMul (x, t)"))
    assert operators(assert_computes_the_same(alone)) == ["MatMul"]
    twice = model(text.format(more="", rest="m = MatMul (x, t) y = MatMul (m, t)"))
    result = assert_computes_the_same(twice)
    assert operators(result) == ["MatMul", "MatMul"]
    assert len(result.graph.initializer) == 1
    shared = model(text.format(more="", rest="m = MatMul (x, t) y = MatMul (m, w)"))
    assert "Transpose" in operators(assert_computes_the_same(shared))
    inside = model(
        text.format(
            more=", bool c",
            rest="""y = If (c) <then_branch = a () => (float[N,3,600] u) { u = MatMul (x, t) },
                                else_branch = b () => (float[N,3,600] v) { v = Neg (x) }>""",
        )
    )
    assert "Transpose" in operators(normalised(inside))


def test_the_model_is_left_as_it_was_where_a_body_reads_its_constants():
    proto = model(
        """g (float[N,3] x) => (float[N,3] y) <int64[1] axis, bool yes> { s = Unsqueeze (x, axis)
        h = If (yes) <then_branch = t () => (float[N,3] o) { o = Squeeze (s, axis) },
                      else_branch = e () => (float[N,1,3] p) { p = Identity (s) }> y = Abs (h) }""",
        axis=np.array([1]),
        yes=np.array(True),
    )
    before = proto.SerializeToString()
    graph = import_model(proto)
    normalise(graph)
    export_model(graph, proto)
    assert proto.SerializeToString() == before


SCALED = {
    "linear": ("float[N,5,8] x", "a = MatMul (x, w) y = Mul (a, s)", "float[8,6] w, float[6] s", (6,)),
    "scalar": ("float[N,5,8] x", "a = MatMul (x, w) b = Add (a, c) y = Mul (s, b)", "float[8,6] w, float[6] c, float s", ()),
    "divided": ("float[N,5,8] x", "a = MatMul (x, w) y = Div (a, s)", "float[8,6] w, float[1,1,6] s", (1, 1, 6)),
    "gemm": ("float[N,8] x", "a = Gemm <transB = 1> (x, w, c) y = Mul (a, s)", "float[6,8] w, float[6] c, float[6] s", (6,)),
    "conv": ("float[N,4,5,5] x", "a = Conv (x, w, c) y = Mul (a, s)", "float[6,4,3,3] w, float[6] c, float[6,1,1] s", (6, 1, 1)),
    "depthwise": ("float[N,4,5,5] x", "a = Conv <group=4> (x, w) y = Mul (a, s)", "float[4,1,3,3] w, float[4,1,1] s", (4, 1, 1)),
    "transposed": (
        "float[N,5,5,4] x",
        "a = MatMul (x, w) t = Transpose <perm=[0,3,1,2]> (a) y = Mul (t, s)",
        "float[4,6] w, float[6,1,1] s",
        (6, 1, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_scales_are_folded(name: str) -> None:
    inputs, nodes, weights, shape = SCALED[name]
    rank = inputs.count(",") + 1
    proto = model(
        f"g ({inputs}) => (float[{','.join('ABCD'[:rank])}] y) <{weights}> {{ {nodes} }}",
        s=np.random.default_rng(3).uniform(0.5, 2, shape),
    )
    assert not {"Mul", "Div"} & {*operators(assert_computes_the_same(proto))}


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ("a = MatMul (x, w) y = Mul (a, k)", "float[N,6,6] y"),  # along rows
        ("a = MatMul (x, w) y = Mul (a, s) z = Relu (a)", "float[N,6,6] y, float[N,6,6] z"),
        ("a = MatMul (x, w) y = Mul (a, s)", "float[N,6,6] y, float[N,6,6] a"),
        ("a = MatMul (x, w) y = Div (s, a)", "float[N,6,6] y"),
        ("a = MatMul (x, w) y = Mul (a, o)", "float[N,6,6] y"),  # by zero: a weight of zeros would be eliminated
    ],
)
def test_scales_that_stay(nodes: str, outputs: str) -> None:
    weights = "float[8,6] w, float[6] s, float[6,1] k, float o"
    proto = model(f"g (float[N,6,8] x) => ({outputs}) <{weights}> {{ {nodes} }}", o=np.array(0))
    assert {"Mul", "Div"} & {*operators(assert_computes_the_same(proto))}


def test_scales_stay_where_the_weight_is_shared():
    """Folded, the weight would be stored once for each reader."""
    text = """g (float[N,8] x) => (float[N,8] y) <float[8,8] w, float s> {
        a = MatMul (x, w) b = Mul (a, s) c = Relu (b) d = MatMul (c, w) y = Mul (d, s) }"""
    result = assert_computes_the_same(model(text, s=np.array(0.5)))
    assert sum(len(t.dims) == 2 for t in result.graph.initializer) == 1


ROWS = """g (float[N,5,8] x) => (float[N,5,6] y)
    <int64[2] p, int64[1] at0, int64[1] at1, int64[1] n, float[8,6] w, float[6] b, float[6,8] v> {
    r = Reshape (x, p) a = GEMM s = Shape (x) d = Gather (s, at0) e = Gather (s, at1) q = Concat <axis=0> (d, e, n)
    y = Reshape (a, q) }"""


@pytest.mark.parametrize("gemm", ["Gemm (r, w, b)", "Gemm (r, w)", "Gemm <transB = 1> (r, v, b)"])
def test_rows_that_a_gemm_joins_stay_apart(gemm: str) -> None:
    integers = {"p": [-1, 8], "at0": [0], "at1": [1], "n": [6]}
    proto = model(ROWS.replace("GEMM", gemm), **{name: np.array(v, np.int64) for name, v in integers.items()})
    assert operators(assert_computes_the_same(proto)) == ["MatMul", "Add"][: gemm.count(",")]


@pytest.mark.parametrize("gemm", ["Gemm <alpha = 2.0> (r, w, b)", "Gemm (r, w, c)", "Gemm <transA = 1> (t, w, b)"])
def test_other_gemms_between_reshapes_stay(gemm: str) -> None:
    integers = {"p": [-1, 8], "at0": [0], "at1": [1], "n": [6]}
    text = ROWS.replace("GEMM", gemm).replace("float[6] b", "float[6] b, float[1] c")
    text = text.replace("a = Gemm <transA", "t = Transpose <perm=[1,0]> (r) a = Gemm <transA")
    proto = model(text, **{name: np.array(v, np.int64) for name, v in integers.items()})
    assert "Gemm" in operators(assert_computes_the_same(proto))


@pytest.mark.parametrize(("source", "target", "kept"), [("float", 1, 0), ("bfloat16", 16, 0), ("bfloat16", 1, 1)])
def test_casts_to_the_same_type(source, target, kept):
    kind = {1: "float", 16: "bfloat16"}[target]
    graph = import_model(
        model(
            f"graph (float[N,4] x, {source}[N] s) => (float[N,3] y, {kind}[1,N] t) <float[4,3] w, int64[1] axis>"
            f" {{ y = MatMul (x, w) c = Cast <to={target}> (s) t = Unsqueeze (c, axis) }}",
            axis=np.array([0]),
        )
    )
    normalise(graph)
    assert [node.op for node in graph.nodes].count("Cast") == kept


def test_types_behind_the_sum_that_a_norm_writes() -> None:
    text = """graph (float[N,4,8] x) => (float[N,4,8] y) <float[8] g, float[8] b> {
        n, , , s = com.microsoft.SkipLayerNormalization (x, x, g, b) a = Add (s, n) y = Relu (a) }"""
    graph = import_model(model(text))
    infer_shapes(graph)
    assert (graph.tensors()["a"].dtype, graph.tensors()["a"].shape[1:]) == (np.float32, [4, 8])


def test_casts_between_integers_keep_what_lies_between_in_floats() -> None:
    """Half of a position is none of an integer's 0."""
    text = """graph (int64[N] i) => (int64[N] j, float[N,4] y) <float half, float[8,4] e, float[4,4] w> {
        f = Cast <to=1> (i) h = Mul (f, half) j = Cast <to=7> (h) x = Gather (e, j) s = Mul (x, half) y = MatMul (s, w) }"""
    proto = model(text, half=np.array(0.5))
    feed = {"i": np.arange(8)}
    graph = import_model(proto)
    normalise(graph)
    assert_same(run(export_model(graph, proto).whole(), feed), run(proto, feed))


@pytest.mark.parametrize(
    "source",
    [
        "RandomNormal <shape=[4,8]> ()",
        "RandomUniform <shape=[4,8]> ()",
        "RandomNormalLike (c)",
        "RandomUniformLike (c)",
        "Bernoulli (c)",
        "Dropout (c, ratio, training)",
        "If (training) <then_branch = a () => (float[4,8] r) { r = RandomNormalLike (c) },"
        " else_branch = b () => (float[4,8] t) { t = Identity (c) }>",
    ],
)
def test_random_numbers_stay_random(source: str) -> None:
    text = f"""graph (float[4,8] x) => (float[4,3] y) <float[4,8] c, float[8,3] w, float ratio, bool training> {{
        n = {source} z = Add (x, n) y = MatMul (z, w) }}"""
    proto = model(text, c=np.full((4, 8), 0.5), ratio=np.array(0.5), training=np.array(True))
    graph = import_model(proto)
    normalise(graph)
    ours = session(export_model(graph, proto).whole())
    feed = {"x": np.zeros((4, 8), np.float32)}
    (first,), (second,) = ours.run(None, feed), ours.run(None, feed)
    assert (first != second).any()


def test_random_numbers_of_a_local_function_stay_random() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[4,8] x) => (float[4,8] y) {
        n = local.Outer () y = Add (x, n) }
        <domain: "local", opset_import: ["": 17]> Noise () => (o) { o = RandomNormal <shape=[4,8]> () }
        <domain: "local", opset_import: ["": 17, "local": 1]> Outer () => (o) { o = local.Noise () }"""
    graph = import_model(onnx.parser.parse_model(text))
    normalise(graph)
    assert [node.op for node in graph.nodes] == ["Outer", "Add"]


def test_text_is_no_constant() -> None:
    text = """g (float[N,8] x) => (float[N,3] y, string label) <float[8,3] w> {
        t = Constant <value_string = "cat"> () label = Identity (t) y = MatMul (x, w) }"""
    proto = model(text)
    assert run(normalised(proto), feed_for(proto))[1] == "cat"
