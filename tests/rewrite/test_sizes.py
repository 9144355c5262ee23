"""What exporters compute of sizes is known where only the batch is free, and what is idle then goes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import assert_same, feed_for, model, operators, run

from deftonnx.rewrite.normalise import export_model, import_model, normalise


def normalised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` after normalisation, which computes the same for two batches."""
    graph = import_model(proto)
    normalise(graph)
    result = export_model(graph, proto).whole()
    for batch in (1, 5):
        feed = feed_for(proto, N=batch, H=6)
        assert_same(run(result, feed), run(proto, feed))
    return result


SHUFFLE = """g (float[N,8,4,4] x) => (float[N,8,4,4] y) <int64 zero, int64 one, int64 two, int64[1] at0, int64[1] at1> {
    s = Shape (x) b = Gather (s, zero) t = Shape (x) c = Gather (t, one) d = Div (c, two)
    b1 = Unsqueeze (b, at0) d1 = Unsqueeze (d, at0) p = Concat <axis=0> (b1, two1, d1, four, four)
    r = Reshape (x, p) q = Transpose <perm=[0,2,1,3,4]> (r)
    u = Shape (q) v = Gather (u, zero) v1 = Unsqueeze (v, at0) w = Concat <axis=0> (v1, rest, four, four)
    y = Reshape (q, w) }"""


def test_a_shuffle_of_channels():
    vectors = {"two1": [2], "four": [4], "rest": [-1], "at0": [0], "at1": [1]}
    numbers = {"zero": 0, "one": 1, "two": 2}
    text = SHUFFLE.replace("int64[1] at1>", "int64[1] at1, int64[1] two1, int64[1] four, int64[1] rest>")
    proto = model(text, **{name: np.array(value, np.int64) for name, value in {**vectors, **numbers}.items()})
    assert operators(normalised(proto)) == ["Reshape", "Transpose", "Reshape"]


HALVES = """g (float[N,C,4] x) => (float[N,P,4] y, float[N,Q,4] z)
    <int64 one, int64 two, int64[1] at0, int64[1] at1, int64[1] begin> {
    s = Shape (x) c = Gather (s, one) h = Add (c, one) k = Div (h, two) e = Mul (k, one) e1 = Unsqueeze (e, at0)
    f = Mul (k, two) f1 = Unsqueeze (f, at0) y = Slice (x, begin, e1, at1) z = Slice (x, e1, f1, at1) }"""


@pytest.mark.parametrize("channels", [6, 7])
def test_halves_of_channels(channels):
    values = {"one": 1, "two": 2, "at0": [0], "at1": [1], "begin": [0]}
    half = -(-channels // 2)
    text = (
        HALVES.replace("N,C,", f"N,{channels},").replace("N,P,", f"N,{half},").replace("N,Q,", f"N,{channels - half},")
    )
    proto = model(text, **{name: np.array(value, np.int64) for name, value in values.items()})
    assert operators(normalised(proto)) == ["Slice", "Slice"]


def test_what_depends_on_a_free_size_stays():
    proto = model(
        """g (float[N,2,H] x) => (float[P,H] y) <int64 two, int64[1] at0, int64[1] rest, int64[1] least> {
        s = Shape (x) h = Gather (s, two) h1 = Unsqueeze (h, at0) q = Div (h1, least) m = Mul (q, least)
        p = Concat <axis=0> (rest, m) y = Reshape (x, p) }""",
        **{
            name: np.array(value, np.int64)
            for name, value in {"two": 2, "at0": [0], "rest": [-1], "least": [1]}.items()
        },
    )
    assert "Shape" in operators(normalised(proto))


def test_comparisons_with_the_batch_stay():
    proto = model(
        """g (float[N,4] x) => (float[N,4] y) <int64 zero, int64 one, float[1] a, float[1] b> {
        s = Shape (x) n = Gather (s, zero) e = Equal (n, one) w = Where (e, a, b) y = Mul (x, w) }""",
        zero=np.array(0, np.int64),
        one=np.array(1, np.int64),
    )
    assert "Where" in operators(normalised(proto))


@pytest.mark.parametrize(
    ("nodes", "constants", "left"),
    [
        ("b = Pad (a, p)", {"p": [0] * 6}, 0),
        ("b = Pad (a, p)", {"p": [0, 0, 0, 0, 0, 1]}, 1),
        ("b = Slice (a, s, e, i)", {"s": [0], "e": [4], "i": [1]}, 0),
        ("b = Slice (a, s, e, i)", {"s": [0, 0], "e": [2**63 - 1, 9], "i": [0, 2]}, 0),
        ("b = Slice (a, s, e, i)", {"s": [0], "e": [3], "i": [1]}, 1),
        ("b = Slice (a, s, e, i)", {"s": [0], "e": [9], "i": [0]}, 1),
        ("b = Slice (a, s, e, i, t)", {"s": [0], "e": [4], "i": [1], "t": [2]}, 1),
    ],
)
def test_idle_nodes_go(nodes, constants, left):
    names = ", ".join(f"int64[{len(values)}] {name}" for name, values in constants.items())
    proto = model(
        f"g (float[N,4,5] x) => (float[A,B,C] y) <{names}> {{ a = Relu (x) {nodes} y = Abs (b) }}",
        **{name: np.array(values, np.int64) for name, values in constants.items()},
    )
    assert len(operators(normalised(proto))) == 2 + left


def test_the_end_of_everything_stays_the_end():
    """The largest int64 is no float64: as a number it would become the smallest."""
    text = """g (float[N,6,8] x) => (float[N,P,6] y)
        <int64[1] two, int64[1] end, int64[2] begins, int64[2] axes, float[8,8] w> {
        x0 = MatMul (x, w) s = Shape <start=1, end=2> (x0) h = Div (s, two) ends = Concat <axis=0> (h, end)
        y = Slice (x0, begins, ends, axes) }"""
    values = {"two": [2], "end": [2**63 - 1], "begins": [0, 2], "axes": [1, 2]}
    normalised(model(text, **{name: np.array(value, np.int64) for name, value in values.items()}))


@pytest.mark.parametrize("axes", ["axes=[1], ", "axes=[0], ", ""])
def test_products_of_sizes(axes):
    rank, sizes = ("[P,Q,R]", "p") if axes else ("[P,Q]", "one")
    text = f"""g (float[N,6,32] x) => (float{rank} y) <int64[2] square, int64[2] more, int64[1] any, int64[1] at0> {{
        s = Shape <start=1> (x) f = Concat <axis=0> (s, more) m = Reshape (f, square)
        p = ReduceProd <{axes}keepdims=0> (m) one = Reshape (p, any)
        both = Concat <axis=0> (any, {sizes}) y = Reshape (x, both) }}"""
    values = {"square": [2, 2], "more": [1, 1], "any": [-1], "at0": [0]}
    normalised(model(text, **{name: np.array(value, np.int64) for name, value in values.items()}))
