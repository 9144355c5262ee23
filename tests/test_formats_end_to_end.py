"""`optimize(format=…)`: in every format the model is its plan's decoded weights, runs in stock ONNX Runtime, and twice."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import assert_same, feed_for, model, run
from onnx import numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER
from small_files import inputs, small_model
from small_networks import convolutional, images, samples, transformer

import deftonnx
from deftonnx.errors import UsageError
from deftonnx.formats import FORMAT_NAMES, PackedWeight, pack_weight, unpack_weight
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.layers import find_layers
from deftonnx.plan import Plan
from deftonnx.rewrite.normalise import export_model, import_model, normalise

FORMATS = (*FORMAT_NAMES, "deft8:auto")
SHARED = Path(os.environ.get("DEFTONNX_SHARED", "/nonexistent"), "models")


def optimised(proto: Any, name: str, **options: Any) -> deftonnx.Result:
    return deftonnx.optimize(proto, format=name, measure=False, **options)


def oracle(proto: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """`proto` with every weight that the plan packs replaced by NumPy's unpacking of NumPy's packing."""
    graph = import_model(proto)
    normalise(graph)
    formats = {entry.name: entry.format for entry in plan.layers}
    for layer in find_layers(graph):
        name = formats.get(layer.name)
        if name not in (None, "fp32"):
            weight = unpack_weight(pack_weight(layer.weight()[0], name))
            layer.store(weight[None], layer.bias())
    return export_model(graph, proto).whole()


def packed_nodes(proto: onnx.ModelProto) -> dict[str, dict[str, Any]]:
    """Attributes of the DeftGemm nodes."""
    return {
        node.name: {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in proto.graph.node
        if is_gemm(node.domain, node.op_type)
    }


def weight_of(proto: onnx.ModelProto, name: str) -> np.ndarray[Any, Any]:
    """What the DeftGemm `name` of a file multiplies by, (K, N), read from the file alone."""
    node = next(node for node in proto.graph.node if node.name == name)
    attributes = packed_nodes(proto)[name]
    tensors = {t.name: t for t in proto.graph.initializer}
    codes, scale = tensors[node.input[1]], numpy_helper.to_array(tensors[node.input[2]])
    kind = {"half": np.uint16, "deft16": np.uint16, "deft16q": np.uint32}.get(attributes["format"].decode(), np.uint8)
    values = np.frombuffer(codes.raw_data, kind).reshape(codes.dims)
    return unpack_weight(PackedWeight(attributes["format"].decode(), values, scale, attributes["K"]))


@pytest.mark.parametrize("name", FORMATS)
def test_one_layer(name: str) -> None:
    proto = model("graph (float[N,48] x) => (float[N,20] y) <float[48,20] w, float[20] b> { [fc] y = Gemm (x, w, b) }")
    x = np.random.default_rng(0).standard_normal((64, 48), np.float32)
    result = optimised(proto, name, calib_data=x, density=1.0)
    (attributes,) = packed_nodes(result.model).values()
    bias = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "b"))
    want = x.astype(np.float64) @ weight_of(result.model, "fc").astype(np.float64) + bias
    (got,) = run(result.model, {"x": x})
    assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want)
    assert result.plan.layers[0].format == attributes["format"].decode()
    (row,) = result.report.layers
    dense = x @ numpy_helper.to_array(proto.graph.initializer[0])
    error = np.square(x @ weight_of(result.model, "fc") - dense).sum() / np.square(dense - dense.mean(0)).sum()
    assert row.format_error == pytest.approx(error, rel=0.02)
    assert row.bytes_after < row.bytes_before == 4 * (48 * 20 + 20)


@pytest.mark.parametrize("name", FORMATS)
def test_transformer(name: str) -> None:
    proto, x = transformer(), samples()
    result = optimised(proto, name, calib_data=x, density=1.0)
    onnx.checker.check_model(result.model, full_check=True)
    nodes = packed_nodes(result.model)
    assert nodes.keys() == {"q", "k", "v", "o", "up", "down"}
    assert nodes["up"]["activation"] == b"gelu"
    operators = [node.op_type for node in result.model.graph.node]
    assert "Add" not in operators
    assert "Erf" not in operators
    assert result.model.ir_version >= 8
    want = run(oracle(proto, result.plan), {"x": x})
    assert_same(run(result.model, {"x": x}), want, 1e-5)


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_opsets(opset: int) -> None:
    text = """graph (float[N,16] x) => (float[N,16] z) <float[16,32] w, float[32] b, float[32,16] v> {
        p = MatMul (x, w) s = Add (p, b) r = LeakyRelu (s) z = MatMul (r, v) }"""
    proto = model(text, opset=opset)
    feed = feed_for(proto, N=30)
    for name in ("half", "deft16q", "deft8:2"):
        result = optimised(proto, name)
        assert_same(run(result.model, feed), run(oracle(proto, result.plan), feed), 1e-5)
        assert len(packed_nodes(result.model)) == 2


def test_float16_model() -> None:
    proto = model("""graph (float16[N,32] x) => (float16[N,8] y) <float16[32,64] w, float16[64] b, float16[64,8] v> {
        [a] p = Gemm (x, w, b) r = Relu (p) [b] y = MatMul (r, v) }""")
    result = optimised(proto, "half")
    nodes = packed_nodes(result.model)
    assert {n["output_type"] for n in nodes.values()} == {onnx.TensorProto.FLOAT16}
    np.testing.assert_array_equal(weight_of(result.model, "b"), numpy_helper.to_array(proto.graph.initializer[2]))
    feed = feed_for(proto, N=16)
    assert_same(run(result.model, feed), run(proto, feed), 3e-3)


@pytest.mark.parametrize("name", ["deft16q", "deft8:auto"])
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_a_plan_gives_the_same_bytes_and_an_optimised_model_stays(name: str, density: float) -> None:
    data = inputs(2000)
    first = optimised(small_model(), name, calib_data=data, density=density)
    plan = Plan.from_json(first.plan.to_json())
    assert all(entry.format != "deft8:auto" for entry in plan.layers)
    again = deftonnx.optimize(small_model(), calib_data=data, plan=plan, measure=False)
    content = first.model.SerializeToString(deterministic=True)
    assert again.model.SerializeToString(deterministic=True) == content
    second = optimised(first.model, name, calib_data=data, density=density)
    reasons = [r.reason for r in second.report.left_alone]
    assert len(reasons) == 3
    assert all("already packed as" in reason for reason in reasons)
    assert [n.SerializeToString() for n in second.model.graph.node] == [
        n.SerializeToString() for n in first.model.graph.node
    ]
    np.testing.assert_array_equal(run(second.model, {"x": data})[0], run(first.model, {"x": data})[0])
    assert second.report.before.macs == second.report.after.macs == first.report.after.macs
    assert second.report.before.parameters == first.report.after.parameters
    assert [e.format for e in second.plan.layers] == [e.format for e in first.plan.layers]


def test_a_plan_made_with_random_data_gives_the_same_bytes() -> None:
    first = optimised(small_model(), "deft8:auto", calib_data="random", calib_samples=40, density=0.5)
    again = deftonnx.optimize(small_model(), calib_data="random", plan=first.plan, measure=False)
    assert again.model.SerializeToString(deterministic=True) == first.model.SerializeToString(deterministic=True)


def test_the_plan_says_the_format_of_each_layer() -> None:
    plan = optimised(small_model(), "half", calib_data=inputs(), density=1.0).plan
    for entry, name in zip(plan.layers, ("deft8:5", "fp32", "deft16"), strict=True):
        entry.format = name
    result = deftonnx.optimize(small_model(), calib_data=inputs(), plan=plan, measure=False)
    formats = {name: node["format"] for name, node in packed_nodes(result.model).items()}
    assert formats == {"fc0": b"deft8:5", "fc2": b"deft16"}
    assert [node.op_type for node in result.model.graph.node] == ["DeftGemm", "Gemm", "Relu", "DeftGemm"]


def test_both_custom_operators_in_one_model() -> None:
    x = images()
    first = optimised(convolutional(), "deft8:4", calib_data=x, density=0.5, granularity="vector")
    assert {f.name for f in first.model.functions} == {"KeptConv", "DeftGemm"}
    onnx.checker.check_model(first.model, full_check=True)
    plain = deftonnx.optimize(convolutional(), calib_data=x, density=0.5, granularity="vector", measure=False)
    later = optimised(plain.model, "deft8:4", calib_data=x, density=0.5)
    for result in (first, later):
        assert [n.op_type for n in result.model.graph.node if n.domain] == [
            "KeptConv",
            "DeftGemm",
            "DeftGemm",
        ]
        assert_same(run(result.model, {"x": x}), run(plain.model, {"x": x}), 0.05)
    assert_same(run(first.model, {"x": x}), run(later.model, {"x": x}), 1e-5)
    again = deftonnx.optimize(first.model, calib_data=x, density=0.5, measure=False)
    np.testing.assert_array_equal(run(again.model, {"x": x})[0], run(first.model, {"x": x})[0])


def test_formats_can_be_added_to_a_plan_that_names_none() -> None:
    plan = deftonnx.optimize(small_model(), calib_data=inputs(), density=0.5, measure=False).plan
    assert all(entry.format is None for entry in plan.layers)
    result = optimised(small_model(), "deft16", calib_data=inputs(), plan=plan)
    assert len(packed_nodes(result.model)) == 3


@pytest.mark.parametrize("name", ["deft9", "deft8:8", "deft16:up", "half:2", ""])
def test_unknown_formats(name: str) -> None:
    with pytest.raises(UsageError, match="is not one of fp32, half"):
        optimised(small_model(), name)
    plan = deftonnx.optimize(small_model(), measure=False).plan
    plan.layers[1] = replace(plan.layers[1], format=name)
    with pytest.raises(UsageError, match="the plan's format of layer 'fc1'"):
        deftonnx.optimize(small_model(), plan=Plan.from_json(plan.to_json()), measure=False)


@pytest.mark.parametrize(("unpack", "compute"), [(True, b"auto"), (False, b"packed")])
def test_copies_in_16_bits_may_be_forbidden(unpack: bool, compute: bytes) -> None:
    nodes = packed_nodes(optimised(small_model(), "deft8:4", unpack=unpack).model)
    assert nodes
    assert {node["compute"] for node in nodes.values()} == {compute}


def test_formats_need_nodes_that_portable_forbids() -> None:
    with pytest.raises(UsageError, match="--portable forbids"):
        optimised(small_model(), "half", portable=True)


@pytest.mark.parametrize(
    ("text", "opset", "reason"),
    [
        ("graph (double[N,16] x) => (double[N,16] y) <double[16,16] w> { y = MatMul (x, w) }", 17, "type is float64"),
        ("graph (float[16,N] x) => (float[16,N] y) <float[16,16] w> { y = MatMul (w, x) }", 17, "first operand"),
        (
            "graph (float[2,N,16] x) => (float[2,N,16] y) <float[2,16,16] w> { y = MatMul (x, w) }",
            17,
            "batch dimensions",
        ),
        (
            "graph (float[16,N] x) => (float[N,16] y) <float[16,16] w> { y = Gemm <transA = 1> (x, w) }",
            17,
            "transposed",
        ),
        ("graph (float[N,3] x) => (float[N,16] y) <float[3,16] w> { y = MatMul (x, w) }", 17, "no smaller"),
        ("graph (float[N,8,4,4] x) => (float[N,8,4,4] y) <float[8,8,1,1] w> { y = Conv (x, w) }", 17, "not Conv"),
    ],
)
def test_layers_that_are_not_packed(text: str, opset: int, reason: str) -> None:
    proto = model(text, opset=opset)
    result = optimised(proto, "deft16")
    assert not packed_nodes(result.model)
    (refusal,) = result.report.left_unpacked
    assert reason in refusal.reason
    (entry,) = result.plan.layers
    assert (entry.format, entry.format_reason) == ("fp32", refusal.reason)
    replayed = deftonnx.optimize(proto, plan=result.plan, measure=False)
    assert replayed.plan.to_json() == result.plan.to_json()


def test_weights_that_are_not_finite_and_exclusions() -> None:
    proto = small_model()
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0, 0] = np.inf
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w0"))
    result = optimised(proto, "deft8:4", nodes_to_exclude=("fc2",))
    reasons = {r.name: r.reason for r in result.report.left_unpacked}
    assert packed_nodes(result.model).keys() == {"fc1"}
    assert "infinities" in reasons["fc0"]
    assert "excluded" in reasons["fc2"]


@pytest.mark.parametrize("exclusion", [{"nodes_to_exclude": ("stem", "body")}, {"op_types_to_exclude": ("Conv",)}])
def test_excluded_convolutions_are_not_packed(exclusion: dict[str, Any]) -> None:
    options: dict[str, Any] = {"preset": "dense16", "decide_by": "nothing", **exclusion}
    result = deftonnx.optimize(convolutional(), calib_data=images(), measure=False, **options)
    assert [node.op_type for node in result.model.graph.node].count("Conv") == 2
    reasons = {refusal.name: refusal.reason for refusal in result.report.left_unpacked}
    assert all("excluded by" in reasons[name] for name in ("stem", "body"))
    assert not any("matches no layer" in warning for warning in result.report.warnings)


@pytest.mark.parametrize("preset", ["dense16", "balanced"])
def test_packed_convolutions_keep_their_entries_of_the_plan(preset: str) -> None:
    options: dict[str, Any] = {"calib_data": images(), "preset": preset, "decide_by": "nothing", "measure": False}
    first = deftonnx.optimize(convolutional(), **options)
    second = deftonnx.optimize(first.model, **options)
    assert second.plan.layers == first.plan.layers
    assert [node.op_type for node in second.model.graph.node] == [node.op_type for node in first.model.graph.node]


def test_types_that_numpy_lacks_are_no_news_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    G_LOGGER.once_logged.clear()
    text = "graph (float[N,16,6,6] x) => (float[N,8,a,b] y) <float[8,16,3,3] w> { y = Conv (x, w) }"
    options: dict[str, Any] = {"preset": "dense16", "format": "deft16", "decide_by": "nothing"}
    result = deftonnx.optimize(model(text), calib_data=images(), measure=False, **options)
    assert any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in result.model.graph.initializer)
    assert capsys.readouterr().out == ""


def test_exclusions_that_match_nothing_are_told() -> None:
    options: dict[str, Any] = {"nodes_to_exclude": ("fc1", "conv"), "op_types_to_exclude": ("Conv",)}
    result = optimised(small_model(), "half", calib_data=inputs(), **options)
    assert "--nodes-to-exclude conv matches no layer" in result.report.warnings
    assert "--op-types-to-exclude Conv: no layer is one" in result.report.warnings
    assert not any("fc1" in warning for warning in result.report.warnings)


def test_without_data_exponents_come_from_the_weights_alone() -> None:
    result = optimised(small_model(), "deft8")
    assert any("weights alone" in warning for warning in result.report.warnings)
    assert all(row.format_error is None for row in result.report.layers)
    assert result.report.improved


def test_automatic_exponents_have_the_least_output_error() -> None:
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal((64, 32)) * np.exp(3 * rng.standard_normal((64, 1)))).astype(np.float32)
    x = (rng.standard_normal((500, 64)) / np.abs(weight).max(1)).astype(np.float32)
    proto = model("graph (float[N,64] x) => (float[N,32] y) <float[64,32] w> { y = MatMul (x, w) }", w=weight)
    errors = {
        name: optimised(proto, name, calib_data=x, density=1.0).report.layers[0].format_error
        for name in FORMATS
        if name.startswith("deft8")
    }
    assert errors.pop("deft8:auto") == min(errors.values()) < errors["deft8:1"]


@pytest.mark.parametrize("target", ["any", "cuda"])
@pytest.mark.parametrize(("granularity", "width"), [("block:32", 32), ("block:16", 16), ("vector", 8), ("element", 1)])
def test_elimination_in_the_kernel(granularity: str, width: int, target: str) -> None:
    """Two Softmax that nothing can be absorbed through: the middle layer's features stay in its input."""
    proto = model("""graph (float[N,96] x) => (float[N,40] z) <float[96,96] w, float[96,64] v, float[64,40] u> {
        [a] a = MatMul (x, w) p = Softmax (a) [b] b = MatMul (p, v) q = Softmax (b) [c] z = MatMul (q, u) }""")
    x = np.random.default_rng(1).standard_normal((3000, 96), np.float32)
    options = {"calib_data": x, "density": 0.5, "granularity": granularity, "target": target, "decide_by": "nothing"}
    result = optimised(proto, "deft16", **options)
    node = packed_nodes(result.model)["b"]
    row = next(row for row in result.report.layers if row.name == "b")
    operators = [n.op_type for n in result.model.graph.node]
    if target == "cuda":
        assert node["block"] in range(width, 65)
        assert (node["features"], node["K"]) == (96, row.kept)
        assert row.form == "kept blocks"
        assert "Gather" not in operators
    else:
        assert node["block"] == 0
        assert row.form in ("Gather", "Slice")
    masked = deftonnx.optimize(proto, plan=_unpacked(result.plan), measure=False, calib_data=x)
    assert_same(run(result.model, {"x": x}), run(masked.model, {"x": x}), 5e-3)
    again = deftonnx.optimize(proto, calib_data=x, plan=result.plan, measure=False)
    assert again.model == result.model


def _unpacked(plan: Plan) -> Plan:
    content = json.loads(plan.to_json())
    for entry in content["layers"]:
        entry.pop("format", None)
    content["settings"]["format"] = "fp32"
    return Plan.from_json(json.dumps(content))


def test_inspect_and_check_know_packed_layers() -> None:
    result = optimised(small_model(), "deft8:4", calib_data=inputs(), density=1.0)
    layers = deftonnx.inspect(result.model)
    assert [(x.op, x.K, x.N, x.parameters, x.macs) for x in layers] == [
        ("DeftGemm", 16, 32, 544, 512),
        ("DeftGemm", 32, 32, 1056, 1024),
        ("DeftGemm", 32, 4, 132, 128),
    ]
    assert [x.format for x in layers] == ["deft8:4"] * 3
    assert layers[0].bytes == 16 * 32 + 4 * 32 + 4 * 32
    assert sum(x.share or 0 for x in layers) == pytest.approx(1)
    assert deftonnx.check(result.model, small_model(), inputs(), max_loss=0.1).passed


@pytest.mark.shared
@pytest.mark.parametrize("name", ["half", "deft16", "deft16q", "deft8:auto"])
@pytest.mark.parametrize("file", ["lenet5_mnist", "alexnet_flowers5", "vit_cifar10", "vgg16_half_cifar10"])
def test_trained_models(file: str, name: str) -> None:
    path = SHARED / f"{file}.onnx"
    if not path.exists():
        pytest.skip("DEFTONNX_SHARED names no folder with the trained models")
    result = optimised(path, name, calib_data="random", calib_samples=8, density=1.0)
    proto = onnx.load(path)
    feed = feed_for(proto, N=4)
    assert_same(run(result.model, feed), run(oracle(proto, result.plan), feed), 1e-5)
    operators = {node.op_type for node in result.model.graph.node}
    assert not operators & {"Gemm", "Erf"}
