"""Models in float16 are rewritten as those in float32 are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from exported import exported, feeds
from fused_model import distance
from models import model
from models import run as outputs
from onnxruntime.transformers.float16 import convert_float_to_float16

import deftonnx
from deftonnx.precision import TOLERANCE

CONVOLUTIONS = """graph (float[N,3,16,16] x) => (float[N,10] y)
<float[16,3,3,3] stem, float[16] b, float[32,16,3,3] body, float[32,16,1,1] skip, float[32,10] head, float[10] c> {
    a = Conv <pads = [1,1,1,1]> (x, stem, b) r = Relu (a)
    d = Conv <pads = [1,1,1,1], strides = [2,2]> (r, body) s = Conv <strides = [2,2]> (r, skip)
    sum = Add (d, s) e = Relu (sum) p = GlobalAveragePool (e) f = Flatten (p) y = Gemm (f, head, c)
}"""
OPTIONS = {"preset": "dense16", "decide_by": "nothing", "measure": False}
FREE = {"Cast"}


def images(samples=6):
    return {"x": np.random.default_rng(0).standard_normal((samples, 3, 16, 16)).astype(np.float32)}


def in_float16(proto, keep_io):
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    return convert_float_to_float16(copy, keep_io_types=keep_io)


def narrow(feed, keep_io):
    return feed if keep_io else {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in feed.items()}


def operators(proto):
    return sorted(node.op_type for node in proto.graph.node if node.op_type not in FREE)


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("name", ["convolutions", "bert_sdpa_dynamo", "torchvision_vit_script"])
def test_as_models_in_float32(name, keep_io):
    wide, feed = (model(CONVOLUTIONS), images()) if name == "convolutions" else (exported(name), feeds(name))
    given = in_float16(wide, keep_io)
    result = deftonnx.optimize(given, calib_data=narrow(feed, keep_io), **OPTIONS)
    assert operators(result.model) == operators(deftonnx.optimize(wide, calib_data=feed, **OPTIONS).model)
    for ours, theirs in (
        (result.model.graph.input, given.graph.input),
        (result.model.graph.output, given.graph.output),
    ):
        assert [v.type.tensor_type.elem_type for v in ours] == [v.type.tensor_type.elem_type for v in theirs]
    got, want = outputs(result.model, narrow(feed, keep_io))[0], outputs(wide, feed)[0]
    assert np.linalg.norm(got.astype(np.float64) - want) <= 2 * TOLERANCE * np.linalg.norm(want)
    if not keep_io and name == "convolutions":
        assert "Cast" not in [node.op_type for node in result.model.graph.node]
    replayed = deftonnx.optimize(given, calib_data=narrow(feed, keep_io), plan=result.plan, measure=False)
    assert operators(replayed.model) == operators(result.model)


def test_constants_and_an_output_that_is_read():
    wide = model(
        """graph (float[N,16] x) => (float[N,16] y, float[N,16] z) <float[16,16] w> {
            a = MatMul (x, w)
            c = Constant <value = float {2.0}> ()
            y = Mul (a, c)
            shape = Shape (y)
            ones = ConstantOfShape <value = float[1] {1.0}> (shape)
            z = Add (y, ones)
        }""",
        w=np.eye(16),
    )
    feed = {"x": np.random.default_rng(0).standard_normal((5, 16)).astype(np.float16)}
    given = in_float16(wide, False)
    for node in given.graph.node:
        for attribute in node.attribute:
            if attribute.name == "value":
                assert attribute.t.data_type == onnx.TensorProto.FLOAT16
    result = deftonnx.optimize(given, calib_data=feed, **OPTIONS).model
    assert distance(result, given, feed) <= 2e-3


def test_short_series_with_channels_last():
    given = model(
        "graph (float16[N,16,6] x) => (float16[N,24,6] y) <float16[24,16,3] w> { y = Conv <pads = [1,1]> (x, w) }"
    )
    feed = {"x": np.random.default_rng(0).standard_normal((5, 16, 6)).astype(np.float16)}
    result = deftonnx.optimize(given, calib_data=feed, **OPTIONS).model
    assert operators(result) == ["DeftChannelsLast", "DeftConv", "Transpose"]
    assert distance(result, given, feed) <= 2e-3


def test_a_constant_that_is_an_output():
    given = model(
        "graph (float16[N,16] x) => (float16[N,16] y, float16[16] c) <float16[16,16] w, float16[16] c>"
        " { a = MatMul (x, w) y = Mul (a, c) }",
        w=np.eye(16),
        c=np.linspace(-1, 1, 16),
    )
    feed = {"x": np.random.default_rng(0).standard_normal((5, 16)).astype(np.float16)}
    result = deftonnx.optimize(given, calib_data=feed, **OPTIONS).model
    for got, want in zip(outputs(result, feed), outputs(given, feed), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=2e-3)


def test_values_that_are_infinite_in_float16_alone():
    given = model(
        """graph (float16[N,16] x) => (float16[N,16] y) <float16[16,16] w> {
            a = MatMul (x, w) wide = Cast <to = 1> (a) square = Mul (wide, wide)
            infinite = Cast <to = 10> (square) divisor = Cast <to = 1> (infinite)
            ratio = Div (wide, divisor) y = Cast <to = 10> (ratio)
        }""",
        w=np.eye(16),
    )
    feed = {"x": np.full((5, 16), 1000, np.float16)}
    result = deftonnx.optimize(given, calib_data=feed, **OPTIONS).model
    assert not outputs(given, feed)[0].any()
    assert not outputs(result, feed)[0].any()


def test_models_with_control_flow_stay_in_float16():
    given = model(
        """graph (float16[N,16] x, bool flag) => (float16[N,16] y) <float16[16,16] w> {
            a = MatMul (x, w)
            y = If (flag) <then_branch = g () => (float16[N,16] t) { t = Relu (a) },
                           else_branch = h () => (float16[N,16] e) { e = Neg (a) }>
        }""",
        w=np.eye(16),
    )
    result = deftonnx.optimize(given, **OPTIONS).model
    assert [node.op_type for node in result.graph.node] == ["DeftGemm", "If"]
