"""`optimize(format="fp8")`: activations are rounded in the finished model, as its plan says, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exported import exported, feeds
from models import assert_same, model, run
from onnx import numpy_helper
from small_files import inputs, small_model
from small_networks import convolutional, images, samples, transformer
from test_formats_end_to_end import optimised, packed_nodes, weight_of

import deftonnx
from deftonnx import DeftError, assemble
from deftonnx.assemble import FP8_TOLERANCE, rounding, verify
from deftonnx.evaluation import Outputs, outputs
from deftonnx.format_selection import FormatChoice
from deftonnx.formats.conv_function import is_conv
from deftonnx.formats.fp8 import round_rows
from deftonnx.layers import LinearLayer, find_layers
from deftonnx.plan import Plan
from deftonnx.precision import distance
from deftonnx.rewrite.normalise import import_model
from deftonnx.settings import Settings


def formats(result: deftonnx.Result) -> dict[str, str]:
    return {name: node["format"].decode() for name, node in packed_nodes(result.model).items()}


def test_one_layer() -> None:
    proto = model("graph (float[N,48] x) => (float[N,20] y) <float[48,20] w, float[20] b> { [fc] y = Gemm (x, w, b) }")
    x = np.random.default_rng(0).standard_normal((64, 48), np.float32)
    result = optimised(proto, "fp8", calib_data=x, density=1.0)
    bias = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "b"))
    rounded = round_rows(x).astype(np.float64) @ weight_of(result.model, "fc")
    (got,) = run(result.model, {"x": x})
    assert np.linalg.norm(got - (rounded + bias)) <= 1e-6 * np.linalg.norm(got)
    (row,) = result.report.layers
    dense = x @ numpy_helper.to_array(proto.graph.initializer[0])
    error = np.square(rounded - dense).sum() / np.square(dense - dense.mean(0)).sum()
    assert row.format_error == pytest.approx(error, rel=0.02)
    weights_alone = optimised(proto, "deft8:4", calib_data=x, density=1.0).report.layers[0]
    assert weights_alone.format_error is not None
    assert row.format_error > 1.5 * weights_alone.format_error
    assert row.bytes_after == weights_alone.bytes_after


def test_transformer_differs_from_its_weights_alone_by_the_rounding_of_activations() -> None:
    x = samples()
    result = optimised(transformer(), "fp8", calib_data=x, density=1.0)
    assert set(formats(result).values()) == {"fp8"}
    weights_alone = optimised(transformer(), "deft8:4", calib_data=x, density=1.0)
    assert_same(run(result.model, {"x": x}), run(weights_alone.model, {"x": x}), 0.1)
    with pytest.raises(AssertionError):
        assert_same(run(result.model, {"x": x}), run(weights_alone.model, {"x": x}), 1e-3)


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_a_plan_gives_the_same_bytes_and_an_optimised_model_stays(density: float) -> None:
    data = inputs(2000)
    first = optimised(small_model(), "fp8", calib_data=data, density=density)
    assert set(formats(first).values()) == {"fp8"}
    again = deftonnx.optimize(small_model(), calib_data=data, plan=Plan.from_json(first.plan.to_json()), measure=False)
    assert again.model.SerializeToString(deterministic=True) == first.model.SerializeToString(deterministic=True)
    second = optimised(first.model, "fp8", calib_data=data, density=density)
    assert all("already packed as fp8" in refusal.reason for refusal in second.report.left_alone)
    np.testing.assert_array_equal(run(second.model, {"x": data})[0], run(first.model, {"x": data})[0])


def test_the_plan_says_which_layers_round() -> None:
    plan = optimised(small_model(), "deft8:4", calib_data=inputs(), density=1.0).plan
    plan.layers[1].format = "fp8"
    result = deftonnx.optimize(small_model(), calib_data=inputs(), plan=plan, measure=False)
    assert formats(result) == {"fc0": "deft8:4", "fc1": "fp8", "fc2": "deft8:4"}
    assert [entry.format for entry in result.plan.layers] == ["deft8:4", "fp8", "deft8:4"]


def test_regions_in_16_bits_and_convolutions() -> None:
    """Convolutions stay in 16 bits."""
    options: dict[str, Any] = {"calib_data": images(), "density": 1.0, "preset": "dense16", "target": "cuda"}
    result = optimised(convolutional(), "fp8", **options)
    convs = [node for node in result.model.graph.node if is_conv(node.domain, node.op_type)]
    found = {a.s.decode() for node in convs for a in node.attribute if a.name == "format"}
    assert found == {"half"}
    assert set(formats(result).values()) == {"fp8"}
    assert_same(run(result.model, {"x": images()}), run(convolutional(), {"x": images()}), 0.2)


def test_rounding_steps_of_32_bits_may_move_a_code_of_8_bits() -> None:
    """A session that sums in another order need not give the same codes: the check of the result allows for one."""
    proto = model(
        "graph (float[N,48] x) => (float[N,20] y) <float[48,20] w> { [fc] y = MatMul (x, w) }", w=np.ones((48, 20))
    )
    result = optimised(proto, "fp8", calib_data=np.ones((2, 48), np.float32), density=1.0)
    between = np.zeros((1001, 48), np.float32)
    between[:, 0], between[:, 1] = 40, np.linspace(16, 20, 1001)
    (y,) = run(result.model, {"x": between})
    step = int(np.abs(np.diff(y[:, 0])).argmax())
    expected, probe = {"y": y[step : step + 1]}, [{"x": between[step + 1 : step + 2]}]
    settings = Settings(format="fp8").resolve(True)
    with pytest.raises(DeftError, match="differs from its plan"):
        verify(expected, result.parts, probe)
    (layer,) = find_layers(import_model(proto))
    assert isinstance(layer, LinearLayer)
    verify(expected, result.parts, probe, rounding(settings, [FormatChoice(layer, "fp8", 0)]))


def test_codes_that_a_deep_network_amplifies_are_no_fault_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations that another session rounds otherwise may change an output by twice what rounding them does."""
    layers = 24
    nodes = "".join(f"m{i} = MatMul (h{i}, w{i}) h{i + 1} = Tanh (m{i}) " for i in range(layers))
    weights = ", ".join(f"float[48,48] w{i}" for i in range(layers))
    rng = np.random.default_rng(0)
    values = {f"w{i}": rng.standard_normal((48, 48)) / 3 for i in range(layers)}
    text = f"graph (float[N,48] h0) => (float[N,48] h{layers}) <{weights}> {{ {nodes} }}"
    x = rng.standard_normal((4, 48), np.float32)
    limits = []

    def checked(expected: Outputs, final: Any, feeds: Any, limit: float = 0.0, *rest: Any, **options: Any) -> None:
        limits.append(limit)
        verify(expected, final, feeds, limit, *rest, **options)

    monkeypatch.setattr(assemble, "verify", checked)
    results = {
        name: deftonnx.optimize(model(text, **values), format=name, calib_data=x, density=1.0, measure=False)
        for name in ("deft8:4", "fp8")
    }
    by_rounding = distance(*(outputs(result.parts, [{"h0": x}]) for result in results.values()))
    assert by_rounding > FP8_TOLERANCE
    assert limits[-1] == pytest.approx(2 * by_rounding, rel=0.1)


def test_rounding_steps_of_16_bits_may_move_a_code_of_8_bits() -> None:
    """What fused attention computes differs by such steps from what is checked against: more than 16 bits alone."""
    options: dict[str, Any] = {"precision": "16-bit", "target": "cuda", "decide_by": "nothing"}
    elimination: dict[str, Any] = {"criterion": "magnitude", "granularity": "vector"}
    data = feeds("bert_sdpa_dynamo", batch=24)
    result = optimised(exported("bert_sdpa_dynamo"), "fp8", calib_data=data, **options, **elimination)
    assert set(formats(result).values()) == {"fp8"}
