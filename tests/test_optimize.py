"""The main job on models whose inputs or outputs are not what most models have."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from models import model, operators, run
from small_files import small_model
from small_networks import with_a_branch

import deftonnx
from deftonnx import assemble, evaluation
from deftonnx.errors import DeftError, UsageError
from deftonnx.model import apart

optimize_module = sys.modules["deftonnx.optimize"]  # the package's name of that is the function

TWO_LAYERS = "<float[8,8] w1, float[8,8] w2> { a = MatMul (x, w1) r = Relu (a) c = MatMul (r, w2)"


@pytest.mark.parametrize("end", ["y = Log (c)", "p = Relu (c) y = Log (p)", "y = Div (c, c)"])
def test_outputs_that_are_not_finite(end: str) -> None:
    proto = model(f"graph (float[N,8] x) => (float[N,8] y) {TWO_LAYERS} {end} }}")
    result = deftonnx.optimize(proto, measure=False)
    x = np.random.default_rng(0).standard_normal((4, 8), np.float32)
    np.testing.assert_array_equal(run(result.model, {"x": x})[0], run(proto, {"x": x})[0])
    score = deftonnx.optimize(proto, calib_data=x, density=1.0, measure=False).report.accuracy
    assert score is not None
    assert score.loss == 0


def test_not_finite_where_the_original_is_finite_is_a_loss() -> None:
    ours, theirs = evaluation.without_agreed(np.array([np.inf, np.nan, -np.inf]), np.array([1.0, np.nan, -np.inf]))
    assert list(ours) == [np.inf, 0, 0]
    assert list(theirs) == [1, 0, 0]


def test_saturated_outputs_are_compared_absolutely() -> None:
    """ONNX Runtime's Sigmoid is exact to 1e-7 only, which is 1% of what is left of it at −14."""
    text = """graph (float[N,8,h,w] x) => (float[N,1,H,W] y)
        <float[8,8,1,1] w1, float[8] s, float[8] b, float[8] m, float[8] v, float[8,1,2,2] w2, float[1] b2> {
        a = Conv (x, w1) n = BatchNormalization (a, s, b, m, v) r = Relu (n)
        c = ConvTranspose <strides = [2,2]> (r, w2, b2) y = Sigmoid (c) }"""
    data = np.random.default_rng(0).standard_normal((1, 8, 7, 7), np.float32)
    proto = model(text, v=np.full(8, 2.0), b2=np.full(1, -14.0))
    folded = deftonnx.optimize(proto, measure=False).model
    feeds = [{"x": data}]
    expected = evaluation.run(evaluation.session(proto), feeds)
    assemble.verify(expected, folded, feeds)
    folded.graph.node[-1].op_type = "Tanh"
    with pytest.raises(DeftError, match="internal check failed"):
        assemble.verify(expected, folded, feeds)


def test_preparation_is_compared_with_the_model_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that were wrong would change plan and result alike."""
    proto = model(f"graph (float[N,8] x) => (float[N,8] y) {TWO_LAYERS} y = Relu (c) }}")
    right = optimize_module.normalise

    def wrong(graph: gs.Graph) -> bool:
        graph.nodes[0].inputs[1].values = 1.1 * graph.nodes[0].inputs[1].values
        return right(graph)

    monkeypatch.setattr(optimize_module, "normalise", wrong)
    for data in (None, "random"):
        with pytest.raises(DeftError, match=r"internal check failed: output 'y' of the model differs by 0\.1"):
            deftonnx.optimize(proto, calib_data=data, measure=False)


def test_outputs_of_other_shapes_are_refused() -> None:
    text = "graph (float[N,8] x) => (float[N,M] y) <float[8,8] w> { a = MatMul (x, w) y = Concat <axis = 1> (a, a) }"
    proto = model(text)
    feeds = [{"x": np.ones((2, 8), np.float32)}]
    expected = evaluation.run(evaluation.session(proto), feeds)
    proto.graph.node[-1].attribute[0].i = 0
    with pytest.raises(
        DeftError, match=r"'y' of the result differs from its plan in shape, \(4, 8\) instead of \(2, 16\)"
    ):
        assemble.verify(expected, apart(proto), feeds)
    with pytest.raises(UsageError, match=r"output 'y' has shape \(4, 8\), the reference's \(2, 16\)"):
        evaluation.score("rel-l2", evaluation.outputs(apart(proto), feeds), expected, None)


def positives(outputs: evaluation.Outputs, labels: object) -> float:
    return outputs["z"].shape[1]


@pytest.mark.parametrize("metric", [None, f"{__name__}:positives"])
def test_how_many_values_there_are_may_depend_on_rounding(metric: str | None) -> None:
    proto = model(
        "graph (float[N,64] x) => (int64[2,M] z, float[N,256] y) <float[64,256] w, float zero>"
        " { y = MatMul (x, w) b = Greater (y, zero) z = NonZero (b) }",
        zero=np.array(0, np.float32),
    )
    feed = {"x": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)}
    result = deftonnx.optimize(proto, calib_data=feed, eval_data=feed, metric=metric, format="deft8:4", measure=False)
    assert run(result.model, feed)[0].shape != run(proto, feed)[0].shape
    with pytest.raises(UsageError, match="output 'z' has shape"):
        deftonnx.check(result.model, proto, feed)


@pytest.mark.parametrize("shapes", [("4,8", "4,8"), ("4,8", "N,8"), ("1,8", "4,8")])
def test_fixed_first_dimensions(shapes: tuple[str, str]) -> None:
    x, z = shapes
    proto = model(f"graph (float[{x}] x, float[{z}] z) => (float[4,8] y) {TWO_LAYERS} y = Add (c, z) }}")
    for data in (None, "random"):
        result = deftonnx.optimize(proto, calib_data=data, measure=False)
        assert not any("not run" in warning for warning in result.report.warnings)


def test_model_that_takes_no_made_up_input_is_not_run() -> None:
    text = "graph (float[N,8] x, int64[N] z) => (float[M,8] y) <float[8,8] w, int64 k> "
    proto = model(text + "{ a = MatMul (x, w) i = Sub (z, k) y = Gather (a, i) }", k=np.array(9))
    result = deftonnx.optimize(proto)
    assert any("not run" in warning for warning in result.report.warnings)


def test_parameters_in_constant_nodes_count() -> None:
    proto = model("graph (float[N,8] x) => (float[N,4] y) <float[8,4] w> { y = MatMul (x, w) }")
    weight = proto.graph.initializer.pop()
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=weight))
    report = deftonnx.optimize(proto, measure=False).report
    assert report.before.parameters == report.after.parameters == 32


@pytest.mark.parametrize("constant", [False, True])
def test_weight_that_branches_share_is_written_once(constant: bool) -> None:
    proto = model("""graph (float[N,32] x, bool c) => (float[N,32] z) <float[32,32] w, float[32,32] v> {
        y = If (c) <then_branch = t () => (float[N,32] a) { p = MatMul (x, w) a = Relu (p) },
                    else_branch = e () => (float[N,32] b) { q = MatMul (x, w) b = Abs (q) }>
        z = MatMul (y, v) }""")
    if constant:
        weight = next(t for t in proto.graph.initializer if t.name == "w")
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=weight))
        proto.graph.initializer.remove(weight)
    result = deftonnx.optimize(proto, measure=False)
    onnx.checker.check_model(result.model)
    assert result.report.after.parameters == result.report.before.parameters == 2 * 32 * 32
    feed = {"x": np.ones((2, 32), np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(run(result.model, feed)[0], run(proto, feed)[0])


@pytest.mark.parametrize("option", ["nodes_to_exclude", "op_types_to_exclude"])
def test_one_string_is_no_sequence_of_exclusions(option: str) -> None:
    proto = model(f"graph (float[N,8] x) => (float[N,8] y) {TWO_LAYERS} y = Relu (c) }}")
    with pytest.raises(UsageError, match=f"{option} 'Conv' is one string"):
        deftonnx.optimize(proto, **{option: "Conv"})


@pytest.mark.parametrize(("least", "free"), [(3, "length"), (40, "length"), (200, "length"), (20000, None)])
def test_free_lengths_are_made_up(least: int, free: str | None) -> None:
    """A model without data is run and compared all the same; a convolution needs inputs of some length."""
    text = f"""graph (float[N,8,length] x) => (float[N,4,out] y) <float[8,8,1] w1, float[4,8,1] w2, float[8,1,{least}] w3> {{
        a = Conv (x, w1) b = Conv <group = 8> (a, w3) r = Relu (b) y = Conv (r, w2) }}"""
    result = deftonnx.optimize(model(text, w3=np.ones((8, 1, least)) / least), measure=False)
    assert any("was not run" in warning for warning in result.report.warnings) == (free is None)
    assert list(result.model.graph.input[0].type.tensor_type.shape.dim)[2].dim_param == "length"


def test_made_up_samples_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def made(*arguments):
        tried.append(arguments[-1])
        raise DeftError("it does not run")

    monkeypatch.setattr(optimize_module.readers, "random_data", made)
    kernels = {"a": "1", "a,b": "1,1", "a,b,c": "1,1,1", "3,3": "1,1"}
    lengths = [[128, 16, 1024, 16384], [16, 128], [16], [None]]
    for (axes, kernel), wanted in zip(kernels.items(), lengths, strict=True):
        tried.clear()
        text = f"graph (float[N,8,{axes}] x) => (float[N,8,{axes}] y) <float[8,8,{kernel}] w> {{ y = Conv (x, w) }}"
        deftonnx.optimize(model(text), measure=False)
        assert tried == wanted
    tried.clear()
    text = (
        "graph (int64[N,a] x) => (float[N,a,8] y) <float[9,8] t, float[8,8] w> { e = Gather (t, x) y = MatMul (e, w) }"
    )
    deftonnx.optimize(model(text), measure=False)
    assert tried == [128, 16]


@pytest.mark.parametrize("free", ["a,b,c,d,e", "a,b,c,d,e,f"])
def test_many_free_lengths(free: str) -> None:
    text = f"graph (float[N,{free}] x) => (float[N,{free[:-1]}8] y) <float[8,8] w> {{ y = MatMul (x, w) }}"
    result = deftonnx.optimize(model(text), measure=False)
    assert any("was not run" in warning for warning in result.report.warnings)


def test_how_much_is_found_may_depend_on_rounding() -> None:
    """Then outputs of the same model in other types have other shapes, which is no reason to refuse it."""
    text = """graph (float[N,S,256] x) => (float[found] y) <float[256,256] w1, float[256,256] w2, float zero> {
        a = MatMul (x, w1) r = Relu (a) b = MatMul (r, w2) g = Greater (b, zero) i = NonZero (g)
        rows = Transpose (i) z = GatherND (b, rows) y = Identity (z) }"""
    result = deftonnx.optimize(model(text, zero=np.array(0.0)), preset="dense16", measure=False)
    assert result.report.accuracy is None
    assert any("was not scored" in warning for warning in result.report.warnings)


@pytest.mark.parametrize("amplified", [300, 1])
def test_what_rounds_otherwise_is_left_where_that_costs_much(monkeypatch: pytest.MonkeyPatch, amplified: int) -> None:
    """Where rounding shows, another result of what is done last is no error: it is left out."""
    text = """graph (float[N,16] x) => (float[N,8] y) <float[16,16] w1, float[16,8] w2, float k> {
        a = MatMul (x, w1) r = Relu (a) b = MatMul (r, w2) c = Mul (b, k) y = Sin (c) }"""
    proto = model(text, k=np.array(float(amplified)))
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)

    def differing(graph: gs.Graph) -> None:
        next(node for node in graph.nodes if node.op == "Sin").op = "Cos"

    monkeypatch.setattr(assemble, "pack_attention", differing)
    wanted = {"preset": "dense16", "decide_by": "nothing", "measure": False, "calib_data": x}
    if amplified == 1:
        with pytest.raises(DeftError, match="internal check failed"):
            deftonnx.optimize(proto, **wanted)
    else:
        assert "Sin" in {node.op_type for node in deftonnx.optimize(proto, **wanted).model.graph.node}


def test_sizes_that_an_earlier_layer_makes() -> None:
    """Layer by layer: the target of Resize is made of a vector whose length is known in the whole graph only."""
    text = """graph (float[N,8,h,w] x) => (float[N,4,H,W] y)
        <float[8,8,1,1] w1, float[8,8,1,1] w2, float[4,8,1,1] w3, int64[1] zero, int64[1] two, int64[2] image> {
        a = Conv (x, w1) s = Shape (a) b = Conv (a, w2) head = Slice (s, zero, two)
        sizes = Concat <axis = 0> (head, image) r = Resize <mode = "nearest"> (b, , , sizes) y = Conv (r, w3) }"""
    proto = model(text, zero=np.zeros(1, np.int64), two=np.array([2]), image=np.array([6, 6]))
    x = np.random.default_rng(0).standard_normal((6, 8, 3, 3)).astype(np.float32)
    result = deftonnx.optimize(proto, calib_data=x, density=0.5, granularity="channel", keep_last=False, measure=False)
    assert any(row.kept < row.K for row in result.report.layers)
    assert run(result.model, {"x": x})[0].shape == (6, 4, 6, 6)


def test_outputs_of_another_type_are_refused() -> None:
    text = "graph (float[N,8] x) => (float[N,8] y) <float[8,8] w> { a = MatMul (x, w) y = Cast <to = 1> (a) }"
    proto = model(text)
    feeds = [{"x": np.ones((2, 8), np.float32)}]
    expected = evaluation.run(evaluation.session(proto), feeds)
    proto.graph.node[-1].attribute[0].i = onnx.TensorProto.DOUBLE
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(DeftError, match="'y' of the result differs from its plan in type, float64 instead of float32"):
        assemble.verify(expected, proto, feeds)
    assemble.verify(expected, proto, feeds, narrowed=True)


def test_inspecting_a_packed_layer_without_its_sizes() -> None:
    packed = deftonnx.optimize(small_model(), format="deft16", measure=False).model
    node = next(node for node in packed.graph.node if node.op_type == "DeftGemm")
    node.attribute.remove(next(a for a in node.attribute if a.name == "K"))
    (left,) = (layer for layer in deftonnx.inspect(packed) if layer.name == node.name)
    assert left.reason == "attribute 'K' is missing"


def test_branches_beside_local_functions() -> None:
    """What a first run writes has both."""
    once = deftonnx.optimize(with_a_branch(17), format="half", measure=False).model
    assert once.functions
    assert {node.op_type for node in once.graph.node} >= {"DeftGemm", "If"}
    again = deftonnx.optimize(once, format="half", measure=False).model
    feed = {"x": np.ones((2, 16), np.float32), "b": np.array(True)}
    np.testing.assert_array_equal(run(again, feed)[0], run(once, feed)[0])
    assert any(layer.op == "DeftGemm" for layer in deftonnx.inspect(again))


NOISY = """graph (float[N,32] x) => (float[N,8] y) <float ratio, bool training, float[32,64] a, float[64,64] c, float[64,8] e> {
    h = MatMul (x, a) r = Relu (h) s = Sigmoid (h) n = SOURCE z = Add (r, n) k = MatMul (z, c) q = Relu (k) y = MatMul (q, e) }"""


@pytest.mark.parametrize("options", [{}, {"preset": "dense16"}, {"preset": "fast", "calib_data": "random"}])
@pytest.mark.parametrize("source", ["RandomNormalLike (r)", "Bernoulli (r)", "Dropout (r, ratio, training)"])
def test_a_model_that_draws_random_numbers_is_not_compared(source: str, options: dict[str, Any]) -> None:
    values = {"ratio": np.array(0.5), "training": np.array(True)}
    proto = model(NOISY.replace("SOURCE", source.replace("(r)", "(s)")), **values)
    result = deftonnx.optimize(proto, measure=False, **options)
    assert source.split()[0] in operators(result.model)
    assert any("draws random numbers" in warning for warning in result.report.warnings)


def test_a_dropout_that_drops_nothing_is_compared() -> None:
    values = {"ratio": np.array(0.5), "training": np.array(False)}
    proto = model(NOISY.replace("SOURCE", "Dropout (r, ratio, training)"), **values)
    result = deftonnx.optimize(proto, measure=False)
    assert "Dropout" not in operators(result.model)
    assert not any("draws random numbers" in warning for warning in result.report.warnings)


def test_layers_before_and_behind_a_body_that_reads_a_large_weight() -> None:
    """The part of the model between them, which is run on its own, has the weight for the body alone."""
    text = """graph (float[N,64] x, bool c) => (float[N,8] y) <float[64,64] a, float[64,64] w, float[64,64] d, float[64,8] e> {
        h = MatMul (x, a) r = Relu (h)
        k = If (c) <then_branch = t () => (float[N,64] u) { u = MatMul (r, w) },
            else_branch = f () => (float[N,64] v) { v = Identity (r) }>
        m = MatMul (k, d) q = Relu (m) y = MatMul (q, e) }"""
    data = {"x": np.random.default_rng(0).standard_normal((32, 64), np.float32), "c": np.array(True)}
    options: dict[str, Any] = {"granularity": "element", "keep_first": False, "keep_last": False, "measure": False}
    result = deftonnx.optimize(model(text), calib_data=[data], density=0.5, **options)
    assert "If" in operators(result.model)
    assert any(layer.kept < layer.K for layer in result.report.layers)
