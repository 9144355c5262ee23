"""Convolution regions with channels last: which operators are inside, where transposes remain, and the same results."""

import numpy as np
import pytest
from generator import Builder
from models import feed_for, model
from models import run as outputs

import deftonnx
from deftonnx.precision import TOLERANCE
from deftonnx.rewrite.channels_last import to_channels_last
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.fuse import fuse
from deftonnx.rewrite.normalise import import_model, normalise

RESIDUAL = """g (float[N,C,H,W] x) => (float[N,4] y)
    <float[16,CHANNELS,3,3] w0, float[16] b0, float[16,16,3,3] w1, float[16] b1, float[24,16,1,1] w2,
     float[24,16,3,3] w3, float[4,24] wf, float[4] bf> {
    a0 = Conv <pads=[1,1,1,1]> (x, w0, b0) a = Relu (a0) m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)
    c0 = Conv <pads=[1,1,1,1]> (m, w1, b1) c1 = Add (c0, m) c = Relu (c1)
    d = Conv <strides=[2,2]> (c, w2) e = Conv <strides=[2,2], pads=[1,1,1,1]> (c, w3) f = Add (d, e)
    p = GlobalAveragePool (f) q = Flatten (p) y = Gemm <transB=1> (q, wf, bf) }"""


def rewritten(proto):
    """The model with channels last, in float32, and the convolutions that were taken."""
    graph = import_model(proto)
    normalise(graph)
    made = to_channels_last(graph, "half")
    fuse(graph)
    return finish(graph, proto, {}), made


def count(proto, op):
    return sum(node.op_type.startswith(op) for node in proto.graph.node)


def distance(proto, like, feed):
    pairs = zip(outputs(proto, feed), outputs(like, feed), strict=True)
    return max(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3) for a, b in pairs)


def residual(channels):
    text = RESIDUAL.replace("CHANNELS", str(channels)).replace("N,C,H,W", f"N,{channels},12,12")
    return model(text)


@pytest.mark.parametrize("channels", [3, 8])
def test_residual_network(channels):
    proto = residual(channels)
    result, made = rewritten(proto)
    assert len(made) == 4
    assert count(result, "Relu") == count(result, "Add") == count(result, "GlobalAveragePool") == 0
    assert count(result, "Pad") == (channels == 3)
    # into the region, out of it and in again around MaxPool, out of it behind the mean
    assert count(result, "Transpose") == 4
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


def test_dense16_end_to_end():
    proto = residual(3)
    feed = feed_for(proto, N=4)
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", measure=False)
    assert count(result.model, "DeftConv") == 4
    rows = {row.op: row for row in result.report.layers}
    assert (rows["Conv"].format, rows["Conv"].output_type) == ("half", "float16")
    assert distance(result.model, proto, feed) <= TOLERANCE
    again = deftonnx.optimize(result.model, calib_data=feed, preset="dense16", measure=False)
    assert distance(again.model, proto, feed) <= TOLERANCE


MOVES = {
    "scalar": "b = Mul (a, k) y = Clip (b, low, high)",
    "constant per channel": "b = Add (a, shift) y = PRelu (b, slope)",
    "constant per position": "y = Mul (a, plane)",
    "concat of two": "b = Concat <axis=1> (a, x) y = Sigmoid (b)",
    "concat of rows": "b = Concat <axis=-2> (a, x) y = Tanh (b)",
    "mean": "b = HardSwish (a) c = ReduceMean <axes=[2,3], keepdims=1> (b) y = Mul (c, b)",
    "mean without dimensions": "y = ReduceMean <axes=[-1,-2], keepdims=0> (a)",
    "mean of channels": "y = ReduceMean <axes=[1], keepdims=1> (a)",
    "other rank": "b = Reshape (a, flat) y = Add (a, b)",
}


@pytest.mark.parametrize("case", MOVES)
def test_operators_behind_a_convolution(case):
    proto = model(
        f"""g (float[N,8,5,6] x) => (float[A,B,D,E] y) <float[8,8,3,3] w, float k, float low, float high, float[8,1,1] shift,
        float[8,1,1] slope, float[1,1,5,6] plane, int64[4] flat> {{
        a = Conv <pads=[1,1,1,1]> (x, w) {MOVES[case]} }}""".replace(
            "[A,B,D,E] y", "[A,B] y" if case == "mean without dimensions" else "[A,B,D,E] y"
        ),
        k=np.array(0.7),
        low=np.array(-0.2),
        high=np.array(0.5),
        flat=np.array([0, 8, 5, 6]),
    )
    result, made = rewritten(proto)
    assert len(made) == 1
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize(
    ("attributes", "weight"),
    [
        ("group=2", [16, 8, 3, 3]),
        ("group=16", [16, 1, 3, 3]),
        ("dilations=[2,1]", [8, 16, 2, 3]),
        ("group=1", [6, 16, 3, 3]),
    ],
)
def test_which_convolutions(attributes, weight):
    text = f"g (float[N,16,9,8] x) => (float[N,M,H,W] y) <float{weight} w> {{ y = Conv <{attributes}> (x, w) }}"
    proto = model(text)
    result, made = rewritten(proto)
    assert len(made) == (weight[0] % 8 == 0 and weight[1] % 8 == 0)
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize("seed", range(30, 60))
def test_random_graphs(seed):
    proto = Builder(seed).build(steps=12)
    feed = feed_for(proto, seed)
    result, _ = rewritten(proto)
    assert distance(result, proto, feed) <= TOLERANCE
