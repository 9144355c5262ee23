"""Pooling inside convolutions of few channels: where, and the same results."""

import numpy as np
import pytest
from models import feed_for, model
from models import run as outputs

import deftonnx
from deftonnx.precision import TOLERANCE
from deftonnx.rewrite.normalise import import_model
from deftonnx.rewrite.pool_inside import pool_inside

NETWORK = """g (float[N,CHANNELS,15,18] x) => (float[N,4] y)
    <float[20,CHANNELS,3,3] w, float[20] b, float[16,20,3,3] v, float[4,16] f> {
    c = Conv <pads=[1,1,1,1]> (x, w, b) BETWEEN
    d = Conv (m, v) p = GlobalMaxPool (d) q = Flatten (p) y = Gemm <transB=1> (q, f) }"""
SQUARES = "kernel_shape=[2,2], strides=[2,2]"
# what stands between the convolutions, and whether the first one pools
BETWEEN = {
    "maxima": (f"m = MaxPool <{SQUARES}> (c)", True),
    "an activation before": (f"r = Relu (c) m = MaxPool <{SQUARES}> (r)", True),
    "one that falls": (f"r = HardSwish (c) m = MaxPool <{SQUARES}> (r)", True),
    "an activation behind": (f"r = MaxPool <{SQUARES}> (c) m = Relu (r)", True),
    "twice": (f"r = MaxPool <{SQUARES}> (c) m = MaxPool <{SQUARES}> (r)", True),
    "windows that overlap": ("m = MaxPool <kernel_shape=[3,3], strides=[2,2]> (c)", False),
    "half of a square": ("m = MaxPool <kernel_shape=[2,1], strides=[2,1]> (c)", False),
    "a rest of the image": (f"m = MaxPool <{SQUARES}, ceil_mode=1> (c)", False),
    "averages": (f"m = AveragePool <{SQUARES}> (c)", False),
    "another reader": (
        f"r = MaxPool <{SQUARES}> (c) z = MaxPool <{SQUARES}> (c) t = Sigmoid (z) m = Add (r, t)",
        False,
    ),
}


def sixteen_bits(proto):
    feed = feed_for(proto, N=5)
    return deftonnx.optimize(proto, calib_data=feed, preset="dense16", decide_by="nothing", measure=False).model


def pools(proto):
    """What `pool` is of every DeftConv that has it."""
    return [list(a.ints) for n in proto.graph.node if n.op_type == "DeftConv" for a in n.attribute if a.name == "pool"]


def check(proto, pooled):
    result = sixteen_bits(proto)
    assert pools(result) == ([[2, 2], [1, 1]] if pooled else [])
    feed = feed_for(proto, N=3)
    (got,), (want,) = outputs(result, feed), outputs(proto, feed)
    assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


@pytest.mark.parametrize("case", BETWEEN)
def test_between_convolutions(case):
    text, pooled = BETWEEN[case]
    check(model(NETWORK.replace("CHANNELS", "3").replace("BETWEEN", text)), pooled)


@pytest.mark.parametrize(("channels", "pooled"), [(1, True), (8, False), (12, True), (120, False)])
def test_kernels_for_whole_loads_of_channels_do_not_pool(channels, pooled):
    text = NETWORK.replace("CHANNELS", str(channels)).replace("BETWEEN", BETWEEN["maxima"][0])
    check(model(text), pooled)


def test_one_body_serves_those_that_pool_and_others():
    result = sixteen_bits(model(NETWORK.replace("CHANNELS", "3").replace("BETWEEN", BETWEEN["twice"][0])))
    assert sum(f.name == "DeftConv" for f in result.functions) == 1
    assert not pool_inside(import_model(result))
