"""Regions in 16 bits: what is taken, where the casts are, and that the model computes what it did to rounding."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from generator import Builder
from models import feed_for, model
from models import run as outputs
from onnx import TensorProto
from small_networks import samples, transformer

import deftonnx
from deftonnx.errors import UsageError
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.precision import TOLERANCE, to_sixteen_bits
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.normalise import import_model, normalise

RNG = np.random.default_rng(5)
SHARED = Path(os.environ.get("DEFTONNX_SHARED", "missing")) / "models"


def run(proto, feed):
    """All outputs by name."""
    return dict(zip([t.name for t in proto.graph.output], outputs(proto, feed), strict=True))


def narrowed(proto, feed):
    """The model in 16 bits, the names of its nodes that are, and the refusals."""
    graph = import_model(proto)
    normalise(graph)
    expected = run(proto, feed)
    found = to_sixteen_bits(graph, proto, expected, [feed], [feed])
    return finish(graph, proto, {}).whole(), found, expected


def assert_close(proto, feed, expected):
    for name, value in run(proto, feed).items():
        assert value.dtype == expected[name].dtype
        distance = np.linalg.norm(value.astype(np.float64) - expected[name])
        assert distance <= TOLERANCE * np.linalg.norm(expected[name]) + 1e-4


def ops(proto, kind):
    return [node for node in proto.graph.node if node.op_type == kind]


def test_chain_has_casts_at_its_edges_only():
    proto = model(
        """g (float[N,3,9,9] x) => (float[N,4,4,4] y) <float[4,3,3,3] w, float[4,4,3,3] v> {
        a = Conv (x, w) b = Relu (a) c = Conv <pads=[1,1,1,1]> (b, v) d = Add (b, c)
        y = MaxPool <kernel_shape=[2,2], strides=[2,2], ceil_mode=1> (d) }"""
    )
    feed = {"x": RNG.standard_normal((2, 3, 9, 9)).astype(np.float32)}
    result, found, expected = narrowed(proto, feed)
    assert list(found.kinds.values()) == ["float16"] * 5
    assert len(ops(result, "Cast")) == 2
    assert_close(result, feed, expected)


def test_elementwise_nodes_alone_stay():
    proto = model("g (float[N,4] x) => (float[N,4] y) { a = Relu (x) y = Sigmoid (a) }")
    result, found, _ = narrowed(proto, {"x": RNG.standard_normal((2, 4)).astype(np.float32)})
    assert not found.kinds
    assert not ops(result, "Cast")


def test_values_beyond_the_range_stay_in_float32():
    proto = model(
        "g (float[N,8] x) => (float[N,8] y) <float[8,8] w, float[8,8] v, float k, float s> {"
        "a = MatMul (x, w) p = Sigmoid (a) b = Mul (p, k) [wide] c = MatMul (b, v) q = Relu (c) d = Mul (q, s)"
        "[last] y = MatMul (d, w) }",
        k=np.array(1e6),
        s=np.array(1e-6),
    )
    feed = {"x": RNG.standard_normal((4, 8)).astype(np.float32)}
    result, found, expected = narrowed(proto, feed)
    assert found.kinds == {"MatMul_0": "float16", "last": "float16"} | found.kinds
    assert "wide" not in found.kinds
    refusal = next(r for r in found.refusals if r.name == "wide")
    assert "float16 does not hold, and there is no bfloat16 kernel" in refusal.reason
    assert_close(result, feed, expected)


def large(text, **values):
    """A model in 16 bits, one of whose tensors float16 does not hold, and what optimize says of it."""
    proto = model(text, **values)
    feed = {t.name: RNG.standard_normal((2, 16, 6, 6)[: len(t.type.tensor_type.shape.dim)]) for t in proto.graph.input}
    feed = {name: value.astype(np.float32) for name, value in feed.items()}
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", measure=False)
    assert_close(result.model, feed, run(proto, feed))
    return result


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def test_convolutions_beyond_float16_are_bfloat16():
    result = large(
        """g (float[N,16,6,6] x) => (float[N,10] y) <float[16,16,3,3] u, float[16,16,3,3] v, float[16] shift,
        float[16,16,1,1] w, float[576,10] m> {
        a = Conv <pads=[1,1,1,1]> (x, u, shift) b = Relu (a) c = Conv <pads=[1,1,1,1]> (b, v) d = Add (c, b)
        e = MaxPool <kernel_shape=[2,2], strides=[1,1], pads=[0,0,1,1]> (d) f = Conv (e, w) h = Flatten (f) y = MatMul (h, m) }""",
        shift=np.full(16, 1e5),
        w=RNG.standard_normal((16, 16, 1, 1)) * 1e-5,
    )
    types = {n.name: attributes(n)["output_type"] for n in result.model.graph.node if n.domain == "ai.deftonnx"}
    assert list(types.values()).count(TensorProto.BFLOAT16) >= 3
    assert list(types.values()).count(TensorProto.FLOAT) == 1  # of the last product
    for node in result.model.graph.node:
        if node.op_type.startswith("DeftConv"):
            assert attributes(node)["format"] == (b"deft16" if types[node.name] == TensorProto.BFLOAT16 else b"half")
    assert len(ops(result.model, "Cast")) <= 3
    assert {row.output_type for row in result.report.layers} >= {"bfloat16"}


def test_products_beyond_float16_are_bfloat16_and_what_has_no_kernel_is_float32():
    result = large(
        "g (float[N,16] x) => (float[N,16] y) <float[16,16] w, float[16,16] v, float[16,16] u, float[16] s> {"
        "a = MatMul (x, w) e = Relu (a) b = Mul (e, s) c = MatMul (b, v) d = Softmax (c) y = MatMul (d, u) }",
        s=np.full(16, 1e6),
    )
    formats = [attributes(n)["format"] for n in result.model.graph.node if n.domain == "ai.deftonnx"]
    assert sorted(formats) == [b"deft16", b"half", b"half"]  # as their inputs are bfloat16 or float16
    assert not [r for r in result.report.left_in_float32 if r.op in ("MatMul", "DeftGemm")]


def test_products_write_float32_where_it_is_read():
    proto = model(
        "g (float[N,16] x) => (float[N,16] y, float[N,16] z) <float[16,16] w, float[16,16] v, float[16,16] u> {"
        "a = MatMul (x, w) b = Relu (a) y = MatMul (b, v) c = MatMul (b, u) d = Sinh (c) z = Add (d, b) }"
    )
    feed = {"x": RNG.standard_normal((3, 16)).astype(np.float32)}
    for io_types in ("keep", "float16"):
        result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", io_types=io_types, measure=False)
        nodes = [n for n in result.model.graph.node if n.domain == "ai.deftonnx"]
        types = [attributes(n)["output_type"] for n in nodes]
        wide = [TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.FLOAT]
        assert types == (wide if io_types == "keep" else [TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT])
        given = {"x": feed["x"].astype(np.float16 if io_types == "float16" else np.float32)}
        for name, value in run(result.model, given).items():
            expected = run(proto, feed)[name]
            assert np.linalg.norm(value.astype(np.float64) - expected) <= TOLERANCE * np.linalg.norm(expected)


@pytest.mark.parametrize("masked", [-3.4e38, -np.inf, -1e9])
def test_attention_mask(masked):
    proto = model(
        "g (float[N,4,8] q, float[N,4,8] k, float[N,1,4] m) => (float[N,4,8] y) {"
        "t = Transpose <perm=[0,2,1]> (k) s = MatMul (q, t) a = Add (s, m) p = Softmax <axis=-1> (a) y = MatMul (p, k)}"
    )
    feed = {name: RNG.standard_normal((2, 4, 8)).astype(np.float32) for name in "qk"}
    feed["m"] = np.where(RNG.random((2, 1, 4)) < 0.4, masked, 0).astype(np.float32)
    feed["m"][:, :, 0] = 0
    result, found, expected = narrowed(proto, feed)
    assert len(found.kinds) == 5
    assert_close(result, feed, expected)


def test_outputs_inside_a_region_and_shared_weights():
    proto = model(
        "g (float[N,8] x) => (float[N,8] a, float[N,8] y, float[8,8] u) <float[8,8] w> {"
        "a = MatMul (x, w) b = Relu (a) y = MatMul (b, w) u = Identity (w) }"
    )
    feed = {"x": RNG.standard_normal((3, 8)).astype(np.float32)}
    result, found, expected = narrowed(proto, feed)
    assert len(found.kinds) == 3
    np.testing.assert_array_equal(run(result, feed)["u"], expected["u"])
    assert_close(result, feed, expected)


def test_bodies_read_float32():
    proto = model(
        "g (float[2,8] x, bool c) => (float[2,8] y) <float[8,8] w> { a = MatMul (x, w) b = Relu (a)"
        "y = If (c) <then_branch = t () => (float[2,8] o) { o = Neg (b) },"
        " else_branch = e () => (float[2,8] p) { p = Abs (b) }> }"
    )
    feed = {"x": RNG.standard_normal((2, 8)).astype(np.float32), "c": np.array(True)}
    result, found, expected = narrowed(proto, feed)
    assert len(found.kinds) == 2
    assert_close(result, feed, expected)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed):
    proto = Builder(seed).build(steps=10)
    feed = feed_for(proto, seed)
    result, _, expected = narrowed(proto, feed)
    assert_close(result, feed, expected)


@pytest.mark.parametrize("preset", ["dense16", "balanced", "fast"])
def test_presets(preset):
    x = samples(80)
    result = deftonnx.optimize(transformer(), calib_data=x, preset=preset, measure=False, keep_last=False)
    gemms = [node for node in result.model.graph.node if is_gemm(node.domain, node.op_type)]
    types = [a.i for node in gemms for a in node.attribute if a.name == "output_type"]
    assert types == [TensorProto.FLOAT16] * 4  # queries, keys and values are one product
    assert [t.type.tensor_type.elem_type for t in (*result.model.graph.input, *result.model.graph.output)] == [1, 1]
    assert (preset == "dense16") == all(row.granularity is None for row in result.report.layers)
    assert result.report.accuracy.loss <= {"dense16": TOLERANCE}.get(preset, 1)


def test_preset_without_data_and_with_an_option():
    result = deftonnx.optimize(transformer(), preset="dense16", format="deft16", measure=False)
    assert {row.format for row in result.report.layers} == {"deft16"}
    with pytest.raises(UsageError, match="preset 'x' is not one of dense16"):
        deftonnx.optimize(transformer(), preset="x")


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        *("lenet5_mnist", "cifarnet_full", "resnet20_cifar10", "squeezenet11_imagenet", "alexnet_flowers5"),
        *("vit_cifar10", "vgg16_half_cifar10"),
    ],
)
def test_trained_models(name):
    path = SHARED / f"{name}.onnx"
    if not path.exists():
        pytest.skip("DEFTONNX_SHARED names no folder with the trained models")
    proto = onnx.load(path)
    feed = feed_for(proto, N=6)
    result = deftonnx.optimize(path, calib_data=feed, preset="dense16", measure=False)
    assert not [r for r in result.report.left_in_float32 if r.op in ("MatMul", "Gemm", "Conv")]
    assert_close(result.model, feed, run(proto, feed))


def test_a_transpose_that_moves_the_batch_before_a_product_loads_on_the_cpu():
    proto = model(
        """g (float[N,5,16] x) => (float[5,N,8] y) <float[16,16] w, float[16,8] v> {
        a = MatMul (x, w) r = Relu (a) t = Transpose <perm=[1,0,2]> (r) y = MatMul (t, v) }"""
    )
    feed = feed_for(proto, N=3)
    result = deftonnx.optimize(proto, preset="dense16", calib_data=feed, decide_by="nothing", measure=False).model
    assert_close(result, feed, run(proto, feed))
    assert {t.data_type for t in result.graph.initializer} >= {TensorProto.FLOAT16}


AMPLIFIER = """g (float[N,16,8,8] x) => (float[N,16,8,8] y) <float[16,16,3,3] w, float k, float[16,1,1] m> {
    a = Conv <pads=[1,1,1,1]> (x, w) b = Sub (a, m) c = Mul (b, k) d = Sin (c) y = Relu (d) }"""


def test_a_network_that_amplifies_rounding_is_no_worse_in_16_bits():
    proto = model(AMPLIFIER, k=np.array(300.0))
    feed = feed_for(proto, N=4)
    result = deftonnx.optimize(proto, preset="dense16", calib_data=feed, decide_by="nothing", measure=False)
    assert any("amplifies rounding" in warning for warning in result.report.warnings)
    assert not [r for r in result.report.left_in_float32 if "more than rounding" in r.reason]


def test_convolutions_that_stay_in_float32_are_left_to_onnx_runtime(monkeypatch):
    proto = model(
        """g (float[N,16,8,8] x) => (float[N,16,8,8] y) <float[16,16,3,3] w, float[16,16,3,3] v> {
        a = Conv <pads=[1,1,1,1]> (x, w) b = Relu (a) y = Conv <pads=[1,1,1,1]> (b, v) }"""
    )
    feed = feed_for(proto, N=4)
    monkeypatch.setattr("deftonnx.precision.difference", lambda *args: 1.0)
    result = deftonnx.optimize(proto, preset="dense16", calib_data=feed, decide_by="model", measure=False)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Relu", "Conv"]
    assert len([r for r in result.report.left_unpacked if "stay in float32" in r.reason]) == 2
    kept = deftonnx.optimize(proto, preset="dense16", calib_data=feed, decide_by="nothing", measure=False)
    assert any(node.op_type.startswith("DeftConv") for node in kept.model.graph.node)


ROOT_MEAN_SQUARE = """g (float[N,5,16] x) => (float[N,5,16] y)
    <float[16,16] w, float[16,16] v, float[16] s, float two, float least> {
    a = MatMul (x, w) h = Add (x, a) SQUARE m = ReduceMean <axes=[-1]> (q) e = Add (m, least) r = Sqrt (e) DIVISION
    n = Mul (s, d) b = MatMul (n, v) y = Add (h, b) }"""


@pytest.mark.parametrize("division", ["d = Div (h, r)", "i = Reciprocal (r) d = Mul (h, i)"])
@pytest.mark.parametrize("square", ["q = Pow (h, two)", "q = Mul (h, h)"])
def test_norms_by_the_root_of_the_mean_square_take_the_residual(square, division):
    text = ROOT_MEAN_SQUARE.replace("SQUARE", square).replace("DIVISION", division)
    proto = model(text, opset=17, two=np.array(2.0), least=np.array(1e-6))
    feed = feed_for(proto, N=3)
    result = deftonnx.optimize(proto, preset="dense16", calib_data=feed, decide_by="nothing", measure=False).model
    assert_close(result, feed, run(proto, feed))
    assert len(ops(result, "SkipSimplifiedLayerNormalization")) == 1
    assert not {node.op_type for node in result.graph.node} & {"Pow", "Sqrt", "ReduceMean"}


@pytest.mark.parametrize("before", ["h = Identity (x)", "h = Mul (x, two)", "a = MatMul (x, w) h = Relu (a)"])
def test_norms_by_the_root_of_the_mean_square_without_a_residual(before):
    text = ROOT_MEAN_SQUARE.replace("a = MatMul (x, w) h = Add (x, a)", before).replace("SQUARE", "q = Mul (h, h)")
    text = text.replace("DIVISION", "i = Div (one, r) d = Mul (h, i)").replace("float two,", "float two, float one,")
    proto = model(text, opset=17, one=np.array(1.0), two=np.array(2.0), least=np.array(0.3))
    feed = feed_for(proto, N=3)
    result = deftonnx.optimize(proto, preset="dense16", calib_data=feed, decide_by="nothing", measure=False).model
    assert_close(result, feed, run(proto, feed))
    assert len(ops(result, "SkipSimplifiedLayerNormalization")) == 1
    assert not {node.op_type for node in result.graph.node} & {"Sqrt", "ReduceMean"}


@pytest.mark.parametrize(
    "change",
    [
        ("m = ReduceMean <axes=[-1]>", "m = ReduceMean <axes=[1]>"),  # along another axis
        ("y = Add (h, b)", "y = Add (r, b)"),  # the root is read elsewhere
        ("q = Pow (h, two)", "q = Pow (x, two)"),  # of something else
    ],
)
def test_other_roots_of_means_stay(change):
    text = ROOT_MEAN_SQUARE.replace("SQUARE", "q = Pow (h, two)").replace("DIVISION", "d = Div (h, r)").replace(*change)
    proto = model(text, opset=17, two=np.array(2.0), least=np.array(1e-6))
    feed = feed_for(proto, N=3)
    result = deftonnx.optimize(proto, preset="dense16", calib_data=feed, decide_by="nothing", measure=False).model
    assert_close(result, feed, run(proto, feed))
    assert not ops(result, "SkipSimplifiedLayerNormalization")


@pytest.mark.parametrize(("largest", "expected"), [(14000, TensorProto.FLOAT16), (20000, TensorProto.FLOAT)])
def test_a_norm_that_adds_what_it_reads_to_itself_needs_twice_the_room(largest, expected):
    text = ROOT_MEAN_SQUARE.replace("a = MatMul (x, w) h = Add (x, a)", "a = MatMul (x, w) h = Relu (a)")
    text = text.replace("SQUARE", "q = Mul (h, h)").replace("DIVISION", "i = Reciprocal (r) d = Mul (h, i)")
    text = text.replace("y = Add (h, b)", "y = Relu (b)")
    proto = model(text, opset=17, two=np.array(2.0), least=np.array(1e-6), w=np.eye(16) * largest)
    feed = {"x": np.abs(np.random.default_rng(0).uniform(0.5, 1, (3, 5, 16))).astype(np.float32)}
    feed["x"][0, 0, 0] = 1
    result = deftonnx.optimize(proto, preset="dense16", calib_data=feed, decide_by="nothing", measure=False).model
    assert_close(result, feed, run(proto, feed))
    (norm,) = [node for node in result.graph.node if node.op_type == "SkipSimplifiedLayerNormalization"]
    made = {name: node for node in result.graph.node for name in node.output}
    kind = next(a.i for a in made[norm.input[0]].attribute if a.name == "output_type")
    assert kind == expected


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("n = ReduceL2 <axes=[-1]> (a) c = Clip (n, least)", "Cast"),
        ("n = ReduceL2 <axes=[-1]> (a) k = Max (n, least) c = Expand (k, shape)", "Cast"),
        ("n = ReduceL2 <axes=[-1]> (a) c = Clip (n, most)", "DeftGemm"),
    ],
)
def test_what_is_divided_by_almost_zero(norm, expected):
    text = f"""g (float[N,5,16] x) => (float[N,5,16] y)
    <float[16,16] w, float[16,16] v, float least, float most, int64[3] shape> {{
    a = MatMul (x, w) {norm} d = Div (a, c) b = MatMul (d, v) y = Relu (b) }}"""
    constants = {"least": np.array(1e-12), "most": np.array(0.5), "shape": np.array([1, 5, 16])}
    proto = model(text, opset=17, **constants)
    feed = feed_for(proto, N=3)
    feed["x"][0, 0] = 0
    result = deftonnx.optimize(proto, preset="dense16", calib_data=feed, decide_by="nothing", measure=False).model
    assert_close(result, feed, run(proto, feed))
    assert len(ops(result, "DeftGemm")) == 2
    (division,) = ops(result, "Div")
    made = {name: node for node in result.graph.node for name in node.output}
    kinds = [a.i for a in made[division.input[0]].attribute if a.name in ("to", "output_type")]
    assert kinds == [TensorProto.FLOAT if expected == "Cast" else TensorProto.FLOAT16]
