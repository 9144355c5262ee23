"""Features of zero between products: rows of whole vectors, and the same results."""

import numpy as np
import pytest
from models import feed_for, model
from models import run as outputs

import deftonnx
from deftonnx.rewrite.fill_features import fill_features
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.normalise import import_model

CHAIN = """g (float[N,30] x) => (float[N,7] y) <float[30,{hidden}] a, float[{hidden}] b, float[{hidden},7] c> {{
    h = Gemm (x, a, b) r = {activation} (h) y = MatMul (r, c) }}"""
# what follows h, and whether its features can be filled up
READERS = {
    "two products": ("r = Relu (h) p = MatMul (r, c) q = MatMul (r, d) y = Add (p, q)", True),
    "a softmax": ("r = Softmax (h) y = MatMul (r, c)", False),
    "a sum": ("r = Relu (h) p = MatMul (r, c) s = ReduceSum <keepdims=1> (r, axes) y = Add (p, s)", False),
    "a residual": ("r = Add (h, z) y = MatMul (r, c)", False),
}


def packed(proto, format_name="half"):
    options = {"target": "cuda", "density": 1.0, "format": format_name, "decide_by": "nothing"}
    return deftonnx.optimize(proto, calib_data=feed_for(proto, N=5), measure=False, **options).model


def sizes(proto):
    """(K, N) of the products."""
    attributes = [{a.name: a.i for a in n.attribute} for n in proto.graph.node if n.op_type.startswith("DeftGemm")]
    return [(a["K"], a["N"]) for a in attributes]


@pytest.mark.parametrize("format_name", ["half", "deft16", "deft16q", "deft8:4"])
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
def test_features_between_two_products(format_name, activation):
    proto = model(CHAIN.format(hidden=20, activation=activation))
    result = packed(proto, format_name)
    assert sizes(result) == [(30, 24), (24, 7)]
    feed = feed_for(proto, N=3)
    (got,), (want,) = outputs(result, feed), outputs(proto, feed)
    assert np.linalg.norm(got - want) <= (0.1 if format_name == "deft8:4" else 5e-3) * np.linalg.norm(want)


def test_whole_vectors_are_left_alone():
    result = packed(model(CHAIN.format(hidden=24, activation="Relu")))
    graph = import_model(result)
    assert not fill_features(graph)
    assert finish(graph, result, {}).whole() == result


@pytest.mark.parametrize("case", READERS)
def test_readers(case):
    text, filled = READERS[case]
    proto = model(
        f"""g (float[N,30] x, float[N,20] z) => (float[N,Q] y)
        <float[30,20] a, float[20] b, float[20,7] c, float[20,7] d, int64[1] axes> {{ h = Gemm (x, a, b) {text} }}""",
        axes=np.array([1]),
    )
    result = packed(proto)
    assert (24 in {n for _, n in sizes(result)}) == filled
    feed = feed_for(proto, N=3)
    (got,), (want,) = outputs(result, feed), outputs(proto, feed)
    assert np.linalg.norm(got - want) <= 5e-3 * np.linalg.norm(want)
