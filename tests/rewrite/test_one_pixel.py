"""Convolutions of one pixel become products, with what lies between them."""

from __future__ import annotations

import onnx
import pytest
from models import assert_same, feed_for, model, operators, packed_products, run

import deftonnx
from deftonnx.rewrite.normalise import export_model, import_model, normalise
from deftonnx.rewrite.one_pixel import products_of_pixels

EXCITE = """g (float[N,16,6,6] x) => (float[N,16,6,6] y)
    <float[32,16,1,1] w, float[32] b, float[16,32,1,1] v, float[16] c> {
    p = GlobalAveragePool (x) s0 = Conv (p, w, b) ACTIVATION e = Conv (s, v, c) g = HardSigmoid (e) y = Mul (x, g) }"""


def rewritten(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with products, which computes the same."""
    graph = import_model(proto)
    normalise(graph)
    assert products_of_pixels(graph)
    result = export_model(graph, proto).whole()
    feed = feed_for(proto, N=3)
    assert_same(run(result, feed), run(proto, feed))
    return result


@pytest.mark.parametrize("activation", ["s = Relu (s0)", "h = Sigmoid (s0) s = Mul (s0, h)", "s = HardSwish (s0)"])
def test_squeeze_and_excitation(activation):
    found = operators(rewritten(model(EXCITE.replace("ACTIVATION", activation))))
    assert found.count("Gemm") == 2
    assert found.count("Flatten") == found.count("Reshape") == 1


def test_what_others_read_is_given_back():
    text = EXCITE.replace("ACTIVATION", "s = Relu (s0)").replace("=> (float", "=> (float[N,32,1,1] s, float")
    assert operators(rewritten(model(text))).count("Reshape") == 2


@pytest.mark.parametrize("text", ["float[N,16,6,6] x", "float[N,16,H,W] x"])
def test_larger_images_stay(text):
    proto = model(f"g ({text}) => (float[N,8,P,Q] y) <float[8,16,1,1] w> {{ y = Conv (x, w) }}")
    graph = import_model(proto)
    normalise(graph)
    assert not products_of_pixels(graph)


def test_a_weight_that_is_an_input_of_any_shape_stays():
    proto = model("g (float[N,8,1,1] x, float w) => (float[N,P,1,1] y) { y = Conv (x, w) }")
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    graph = import_model(proto)
    normalise(graph)
    assert not products_of_pixels(graph)


def test_in_a_whole_model():
    text = EXCITE.replace("ACTIVATION", "s = Relu (s0)").replace("(x, g)", "(q, g)").replace("(x) s0", "(q) s0")
    text = text.replace("{\n", "{\n a = Conv <pads=[1,1,1,1]> (x, u) q = Relu (a) ").replace(
        "<float[32", "<float[16,16,3,3] u, float[32"
    )
    proto = model(text)
    feed = feed_for(proto, N=4)
    result = deftonnx.optimize(proto, preset="dense16", calib_data=feed, decide_by="nothing", measure=False).model
    assert_same(run(result, feed), run(proto, feed), 5e-3)
    ops = operators(result)
    assert packed_products(result) == 2
    assert "Relu" not in ops
    assert "HardSigmoid" not in ops
