"""Heads that nobody reads leave an attention with their queries, keys and values."""

import numpy as np
import pytest
from exported import NAMES, exported, feeds
from models import feed_for, mask, model, prepare, reduce
from models import run as outputs

import deftonnx
from deftonnx.rewrite.absorb import absorb

ATTENTION = """g (float[N,6,32] x, float[N,1,6,6] m) => (float[N,6,32] z)
    <float[32,32] wq, float[32,32] wk, float[32,32] wv, float[32] bv, float[32,32] wo> {
    q = MatMul (x, wq) k = MatMul (x, wk) v0 = MatMul (x, wv) v = Add (v0, bv)
    a = com.microsoft.MultiHeadAttention <num_heads=4, ATTRIBUTES> (q, k, v INPUTS)
    [o] o = MatMul (a, wo) z = Add (o, x) }"""


def attention(attributes="scale=0.3", inputs=", , , m"):
    return model(ATTENTION.replace("ATTRIBUTES", attributes).replace("INPUTS", inputs))


def shapes(layers):
    return {layer.name: layer.weight().shape[1:] for layer in layers}


def masked(proto, dead):
    graph, layers = prepare(proto)
    output = next(layer for layer in layers if layer.name == "o")
    kept = np.ones(32, dtype=bool)
    kept[dead] = False
    mask(output, kept)
    before = reduce(graph.copy(), [], proto)
    while absorb(graph, layers):
        pass
    return graph, layers, before


@pytest.mark.parametrize("dead", [slice(8, 16), [*range(8), *range(24, 32)]], ids=["one", "two"])
def test_whole_heads_are_dropped(dead):
    proto = attention()
    graph, layers, before = masked(proto, dead)
    left = 32 - len(np.arange(32)[dead])
    assert sorted(shapes(layers).values()) == sorted([(32, left)] * 3 + [(left, 32)])
    node = next(n for n in graph.nodes if n.op == "MultiHeadAttention")
    assert node.attrs["num_heads"] == left // 8
    feed = feed_for(proto, N=3)
    result = reduce(graph, layers, proto)
    np.testing.assert_allclose(outputs(result, feed)[0], outputs(before, feed)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dead", "attributes", "inputs"),
    [
        (slice(8, 15), "scale=0.3", ", , , m"),
        (slice(8, 16), "unidirectional=0", ", , , m"),
        (slice(8, 16), "scale=0.3", ", bias"),
    ],
    ids=["part of a head", "a scale of the head size", "biases of its own"],
)
def test_what_is_not_dropped(dead, attributes, inputs):
    text = ATTENTION.replace("ATTRIBUTES", attributes).replace("INPUTS", inputs)
    proto = model(text.replace("float[32] bv,", "float[32] bv, float[96] bias,"))
    _, layers, _ = masked(proto, dead)
    assert [shape for shape in shapes(layers).values() if shape[1] == 32] == [(32, 32)] * 4


@pytest.mark.parametrize("name", NAMES)
def test_granularity_head(name):
    proto, feed = exported(name), feeds(name)
    result = deftonnx.optimize(
        proto, calib_data=feed, preset="balanced", density=0.5, granularity="head", measure=False, keep_last=False
    )
    nodes = [n for n in result.model.graph.node if n.op_type.startswith("DeftAttention")]
    heads = [a.i for n in nodes for a in n.attribute if a.name == "num_heads"]
    whole = deftonnx.optimize(proto, calib_data=feed, preset="dense16", measure=False)
    before = [
        a.i
        for n in whole.model.graph.node
        if n.op_type.startswith("DeftAttention")
        for a in n.attribute
        if a.name == "num_heads"
    ]
    assert [2 * count for count in heads] == before
    rows = [row for row in result.report.layers if (row.granularity or "").startswith("head:")]
    assert len(rows) == len(nodes)
    assert {row.form for row in rows} == {"absorbed"}
    replayed = deftonnx.optimize(proto, calib_data=feed, plan=result.plan, measure=False)
    for one, other in zip(outputs(replayed.model, feed), outputs(result.model, feed), strict=True):
        np.testing.assert_array_equal(one, other)
