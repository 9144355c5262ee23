"""The main job on the bundled LeNet-5: real weights, real images, the default method beside the paper's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import deftonnx

DATA = Path(__file__).resolve().parent.parent / "examples" / "data"
MODEL = DATA / "lenet5_mnist.onnx"


@pytest.mark.parametrize("granularity", ["element", "vector", "channel"])
def test_half_the_features_are_enough(granularity: str) -> None:
    result = deftonnx.optimize(
        MODEL,
        calib_data=DATA / "mnist_calibration.npz",
        eval_data=DATA / "mnist_test.npz",
        density=0.5,
        granularity=granularity,
        calib_samples=1000,
        measure=False,
    )
    score, report = result.report.accuracy, result.report
    assert score is not None
    assert score.loss <= 0.5
    assert report.after.macs <= 0.6 * report.before.macs
    assert all(row.kept <= 0.52 * row.K for row in report.layers if row.granularity)
    onnx.checker.check_model(result.model, full_check=True)


def test_the_paper_needs_its_fine_tuning() -> None:
    result = deftonnx.optimize(
        MODEL, eval_data=DATA / "mnist_test.npz", density=0.5, criterion="correlation", refit="scale", measure=False
    )
    assert result.report.accuracy is not None
    assert result.report.accuracy.loss > 1


def test_siblings_share_one_choice_and_one_gather(rng: np.random.Generator) -> None:
    def weight(*shape: int) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32) / 8)

    graph = onnx.parser.parse_graph(
        "g (float[N,16,64] x) => (float[N,16,8] y) { a = MatMul (x, w0) b = Softmax (a)"
        " [q] q = MatMul (b, w1) [k] k = MatMul (b, w2) [v] v = MatMul (b, w3)"
        " s = Add (q, k) t = Mul (s, v) u = Softmax (t) y = MatMul (u, w4) }"
    )
    for name, shape in {"w0": (64, 64), "w1": (64, 64), "w2": (64, 64), "w3": (64, 64), "w4": (64, 8)}.items():
        tensor = weight(*shape)
        tensor.name = name
        graph.initializer.append(tensor)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    data = rng.normal(size=(200, 16, 64)).astype(np.float32)
    result = deftonnx.optimize(proto, calib_data=data, density=0.5, granularity="element", measure=False)
    kept = {entry.name: entry.kept for entry in result.plan.layers if entry.kept}
    assert kept["q"] == kept["k"] == kept["v"]
    assert [node.op_type for node in result.model.graph.node].count("Gather") == 1
