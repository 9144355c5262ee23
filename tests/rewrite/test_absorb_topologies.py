"""Absorption by topology: the reduced graph computes what the masked one does, and the Gather goes where it can."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from models import (
    NEWEST_OPSET,
    Array,
    assert_same,
    every,
    feed_for,
    masked_and_reduced,
    model,
    operators,
    run,
    shape_of,
)

HALF = every(2, 8)


@dataclass
class Case:
    """A graph, the layers masked in it, and the initializers that must have shrunk (name → shape)."""

    text: str
    masks: dict[str, Array]
    shrinks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    gathers: int = 0
    opset: int = 17
    feeds: dict[str, int] = field(default_factory=dict)


def reduced(case: Case, **values: Array) -> onnx.ModelProto:
    """The reduced form of a case, having checked that it computes what the masked form does."""
    proto = model(case.text, opset=case.opset, **values)
    masked, small = masked_and_reduced(proto, case.masks)
    feed = feed_for(proto, **case.feeds)
    assert_same(run(small, feed), run(masked, feed))
    assert any(output.std() > 1e-6 for output in run(masked, feed) if output.size) or not feed["x"].size
    return small


def image(nodes: str, weights: str, output: str = "float[N,c,h,w] y") -> str:
    """Text of a model from an image `x` through 3×3 convolution `first` (8 channels, tensor `a`) to `y`."""
    return f"""
    graph (float[N,3,6,6] x) => ({output}) <float[8,3,3,3] w1, float[8] b1, {weights}> {{
        [first] a = Conv <pads = [1,1,1,1]> (x, w1, b1)
        {nodes}
    }}"""


LAST = "[last] y = Conv (z, w2)"
SMALL = {"w1": (4, 3, 3, 3), "w2": (5, 4, 1, 1)}
W2 = "float[5,8,1,1] w2"

ABSORBED = {
    "chain": Case(image("z = Relu (a)" + LAST, W2), {"last": HALF}, SMALL),
    "identity": Case(image("z = Identity (a)" + LAST, W2), {"last": HALF}, SMALL),
    "clip": Case(image("z = Clip (a, low, high)" + LAST, W2 + ", float low, float high"), {"last": HALF}, SMALL),
    "constant_per_channel": Case(
        image("r = Relu (a) z = Mul (r, s)" + LAST, W2 + ", float[8,1,1] s"), {"last": HALF}, {**SMALL, "s": (4, 1, 1)}
    ),
    "constant_full_rank": Case(
        image("z = Add (s, a)" + LAST, W2 + ", float[1,8,1,1] s"), {"last": HALF}, {**SMALL, "s": (1, 4, 1, 1)}
    ),
    "constant_scalar": Case(image("r = Relu (a) z = Mul (r, s)" + LAST, W2 + ", float[1] s"), {"last": HALF}, SMALL),
    "prelu": Case(image("z = PRelu (a, s)" + LAST, W2 + ", float[8,1,1] s"), {"last": HALF}, {**SMALL, "s": (4, 1, 1)}),
    "instance_norm": Case(
        image("z = InstanceNormalization (a, s, t)" + LAST, W2 + ", float[8] s, float[8] t"),
        {"last": HALF},
        {**SMALL, "s": (4,), "t": (4,)},
    ),
    "pooling": Case(image("z = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)" + LAST, W2), {"last": HALF}, SMALL),
    "average_pooling": Case(
        image("z = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)" + LAST, W2), {"last": HALF}, SMALL
    ),
    "global_pooling_flatten": Case(
        image("p = GlobalAveragePool (a) z = Flatten (p) [last] y = Gemm (z, w2)", "float[8,4] w2", "float[N,4] y"),
        {"last": HALF},
        {"w1": (4, 3, 3, 3), "w2": (4, 4)},
    ),
    "global_pooling_squeeze": Case(
        image(
            "p = GlobalMaxPool (a) z = Squeeze (p, ax) [last] y = MatMul (z, w2)",
            "float[8,4] w2, int64[2] ax",
            "float[N,4] y",
        ),
        {"last": HALF},
        {"w1": (4, 3, 3, 3), "w2": (4, 4)},
    ),
    "reduce_mean": Case(
        image(
            "z = ReduceMean <axes = [-1,2], keepdims = 0> (a) [last] y = Gemm (z, w2)", "float[8,4] w2", "float[N,4] y"
        ),
        {"last": HALF},
        {"w1": (4, 3, 3, 3)},
    ),
    "flatten": Case(
        image("z = Flatten (a) [last] y = Gemm (z, w2)", "float[288,4] w2", "float[N,4] y"),
        {"last": np.repeat(HALF, 36)},
        {"w1": (4, 3, 3, 3), "w2": (144, 4)},
    ),
    "residual": Case(
        image("r = Relu (a) [second] s = Conv (r, w3) z = Add (s, a)" + LAST, W2 + ", float[8,8,1,1] w3"),
        {"last": HALF, "second": HALF},
        {**SMALL, "w3": (4, 4, 1, 1)},
    ),
    "projection_shortcut": Case(
        image("[down] s = Conv (x, w3) t = Add (a, s) z = Relu (t)" + LAST, W2 + ", float[8,3,1,1] w3"),
        {"last": HALF},
        {**SMALL, "w3": (4, 3, 1, 1)},
    ),
    "concat": Case(
        image(
            "[other] b = Conv (x, w3) z = Concat <axis = 1> (a, b)" + LAST, "float[5,12,1,1] w2, float[4,3,3,3] w3"
        ).replace("Conv (x, w3)", "Conv <pads = [1,1,1,1]> (x, w3)"),
        {"last": every(2, 12)},
        {"w1": (4, 3, 3, 3), "w3": (2, 3, 3, 3), "w2": (5, 6, 1, 1)},
    ),
    "nested_concat": Case(
        image("c = Concat <axis = 1> (a, x) d = Relu (c) z = Concat <axis = -3> (d, a)" + LAST, "float[5,19,1,1] w2"),
        {"last": np.r_[HALF, [True] * 3, HALF]},
        {"w1": (4, 3, 3, 3), "w2": (5, 11, 1, 1)},
    ),
    "split": Case(
        image("p, q = Split <axis = 1> (a, sizes) z = Mul (p, q)" + LAST, "float[5,4,1,1] w2, int64[2] sizes"),
        {"last": every(2, 4)},
        {"w1": (4, 3, 3, 3), "w2": (5, 2, 1, 1)},
    ),
    "depthwise": Case(
        image("z = Conv <group = 8, pads = [1,1,1,1]> (a, d, e)" + LAST, W2 + ", float[8,1,3,3] d, float[8] e"),
        {"last": HALF},
        {**SMALL, "d": (4, 1, 3, 3), "e": (4,)},
    ),
    "depthwise_multiplier_2": Case(
        image("z = Conv <group = 8> (a, d)" + LAST, "float[5,16,1,1] w2, float[16,1,3,3] d"),
        {"last": np.repeat(HALF, 2)},
        {"w1": (4, 3, 3, 3), "d": (8, 1, 3, 3), "w2": (5, 8, 1, 1)},
    ),
    "grouped_consumer": Case(
        image("[last] y = Conv <group = 2> (a, w2)", "float[6,4,1,1] w2"),
        {"last": HALF.reshape(2, 1, 4)},
        {"w1": (4, 3, 3, 3), "w2": (6, 2, 1, 1)},
    ),
    "grouped_producer": Case(
        image("[mid] z = Conv <group = 2> (a, w3)" + LAST, W2 + ", float[8,4,1,1] w3"),
        {"last": HALF},
        {"w3": (4, 4, 1, 1), "w2": (5, 4, 1, 1)},
    ),
    "squeeze_and_excite": Case(
        image(
            "p = GlobalAveragePool (a) [squeeze] q = Conv (p, w3) r = Relu (q) [excite] s = Conv (r, w4)"
            "t = Sigmoid (s) z = Mul (a, t)" + LAST,
            W2 + ", float[4,8,1,1] w3, float[8,4,1,1] w4",
        ),
        {"last": HALF, "squeeze": HALF},
        {**SMALL, "w3": (4, 4, 1, 1), "w4": (4, 4, 1, 1)},
    ),
    "pad_spatial": Case(image("z = Pad (a, amounts)" + LAST, W2 + ", int64[8] amounts"), {"last": HALF}, SMALL),
    "resize": Case(
        image('z = Resize <mode = "linear"> (a, , scales)' + LAST, W2 + ", float[4] scales"), {"last": HALF}, SMALL
    ),
    "channels_last": Case(
        image(
            "t = Transpose <perm = [0,2,3,1]> (a) u = Add (t, s) v = Sigmoid (u) z = Transpose <perm = [0,3,1,2]> (v)"
            + LAST,
            W2 + ", float[8] s",
        ),
        {"last": HALF},
        {**SMALL, "s": (4,)},
    ),
    "unsqueeze_and_squeeze": Case(
        image("t = Unsqueeze (a, ax) u = Relu (t) z = Squeeze (u, ax)" + LAST, W2 + ", int64[1] ax"),
        {"last": HALF},
        SMALL,
    ),
    "transposed_convolution": Case(
        image(
            "[up] u = ConvTranspose <strides = [2,2]> (a, w3, b3) z = Relu (u)" + LAST,
            W2 + ", float[8,8,2,2] w3, float[8] b3",
        ),
        {"last": HALF, "up": HALF},
        {**SMALL, "w3": (4, 4, 2, 2), "b3": (4,)},
    ),
    "gather_of_channels": Case(
        image("z = Gather <axis = 1> (a, index)" + LAST, "float[5,4,1,1] w2, int64[4] index"),
        {"last": every(2, 4)},
        {"w1": (2, 3, 3, 3), "w2": (5, 2, 1, 1), "index": (2,)},
        gathers=1,
    ),
    "option_a_shortcut": Case(
        """
        graph (float[N,4,6,6] x) => (float[N,5,3,3] y)
        <float[8,4,3,3] w1, float[4,4,1,1] w0, float[5,8,1,1] w2, int64[2] from, int64[2] to,
         int64[2] ax, int64[2] by, int64[8] pads> {
            [stem] s = Conv (x, w0)
            [first] a = Conv <pads = [1,1,1,1], strides = [2,2]> (s, w1)
            b = Slice (s, from, to, ax, by)
            c = Pad (b, pads)
            z = Add (a, c)
            [last] y = Conv (z, w2)
        }""",
        {"first": every(2, 4, first=1), "last": np.array([1, 1, 0, 1, 0, 1, 1, 0], dtype=bool)},
        {"w0": (2, 4, 1, 1), "w1": (5, 2, 3, 3), "w2": (5, 5, 1, 1)},
    ),
    "mlp_with_erf_gelu": Case(
        """
        graph (float[N,5,8] x) => (float[N,5,6] y)
        <float[8,16] w1, float[16] b1, float[16,6] w2, float[6] b2, float root, float half, float one> {
            [f1] p = MatMul (x, w1)
            a = Add (b1, p)
            d = Div (a, root) e = Erf (d) f = Add (e, one) g = Mul (a, f) h = Mul (g, half)
            [last] q = MatMul (h, w2)
            y = Add (q, b2)
        }""",
        {"last": every(4, 16)},
        {"w1": (8, 4), "b1": (4,), "w2": (4, 6), "b2": (6,)},
    ),
    "gate_and_up": Case(
        """
        graph (float[N,5,8] x) => (float[N,5,8] y) <float[8,12] wg, float[8,12] wu, float[12,8] wd> {
            [gate] g = MatMul (x, wg)
            [up] u = MatMul (x, wu)
            s = Sigmoid (g) t = Mul (g, s) h = Mul (t, u)
            [down] y = MatMul (h, wd)
        }""",
        {"down": every(3, 12)},
        {"wg": (8, 4), "wu": (8, 4), "wd": (4, 8)},
    ),
    "attention_values": Case(
        """
        graph (float[N,5,8] x) => (float[N,5,8] y) <float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8,8] wo> {
            [q] q = MatMul (x, wq) [k] k = MatMul (x, wk) [v] v = MatMul (x, wv)
            t = Transpose <perm = [0,2,1]> (k)
            s = MatMul (q, t) p = Softmax <axis = -1> (s) c = MatMul (p, v)
            [out] y = MatMul (c, wo)
        }""",
        {"out": HALF},
        {"wv": (8, 4), "wo": (4, 8), "wq": (8, 8), "wk": (8, 8)},
    ),
    "merged_batch_and_tokens": Case(
        """
        graph (float[N,5,8] x) => (float[M,6] y) <float[8,8] w1, float[8,6] w2, int64[2] rows> {
            [first] a = MatMul (x, w1)
            z = Reshape (a, rows)
            [last] y = Gemm (z, w2)
        }""",
        {"last": HALF},
        {"w1": (8, 4), "w2": (4, 6)},
    ),
    "constant_on_the_left": Case(
        """
        graph (float[N,6,4] x) => (float[N,3,4] y) <float[8,6] w1, float[8,1] b1, float[3,8] w2> {
            [first] a = MatMul (w1, x)
            c = Add (a, b1) z = Relu (c)
            [last] y = MatMul (w2, z)
        }""",
        {"last": HALF},
        {"w1": (4, 6), "b1": (4, 1), "w2": (3, 4)},
    ),
    "two_readers_that_agree": Case(
        image("[left] l = Conv (a, w2) [right] r = Conv (a, w3) y = Add (l, r)", W2 + ", float[5,8,1,1] w3"),
        {"left": HALF, "right": HALF},
        {**SMALL, "w3": (5, 4, 1, 1)},
    ),
}
VALUES = {
    "amounts": np.array([0, 0, 1, 2, 0, 0, 1, 0]),
    "ax": np.array([2, 3]),
    "index": np.array([6, -5, 0, 1]),
    "rows": np.array([-1, 8]),
    "scales": np.array([1, 1, 2, 2]),
    "sizes": np.array([4, 4]),
    "from": np.array([0, 0]),
    "to": np.array([1 << 40, 6]),
    "by": np.array([2, 2]),
    "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
    "low": np.array(-0.5),
    "high": np.array(2.0),
    "root": np.array(1.4142135),
    "half": np.array(0.5),
    "one": np.array(1.0),
}
SPECIAL = {"unsqueeze_and_squeeze": {"ax": np.array([0])}}


@pytest.mark.parametrize("name", ABSORBED)
def test_absorbed(name: str) -> None:
    case = ABSORBED[name]
    small = reduced(case, **{**VALUES, **SPECIAL.get(name, {})})
    assert sum(op in ("Gather", "Slice") for op in operators(small)) == case.gathers + case.text.count("Slice (")
    assert {name: shape_of(small, name) for name in case.shrinks} == case.shrinks


def test_batch_norm_left_in_graph_is_sliced() -> None:
    nodes = "r = Relu (a) z = BatchNormalization (r, s, t, m, v)" + LAST
    case = Case(image(nodes, W2 + ", float[8] s, float[8] t, float[8] m, float[8] v"), {"last": HALF})
    small = reduced(case, v=np.linspace(0.5, 2, 8))
    assert "BatchNormalization" in operators(small)
    assert [shape_of(small, name) for name in "stmv"] == [(4,)] * 4


def test_operator_that_mixes_channels_keeps_the_gather() -> None:
    small = reduced(Case(image("z = LRN <size = 3> (a)" + LAST, W2), {"last": every(2, 8, first=1)}))
    assert operators(small) == ["Conv", "LRN", "Gather", "Conv"]
    assert shape_of(small, "w1") == (8, 3, 3, 3)


def test_graph_output_keeps_its_features() -> None:
    text = image("z = Relu (a)" + LAST, W2, output="float[N,8,6,6] z, float[N,5,6,6] y")
    small = reduced(Case(text, {"last": every(2, 8, first=1)}))
    assert shape_of(small, "w1") == (8, 3, 3, 3)
    assert "Gather" in operators(small)


def test_several_readers_share_what_they_need_as_a_prefix() -> None:
    """Somebody reads everything, so the features that the other keeps are moved to the front."""
    nodes = "z = Relu (a) [all] l = Conv (z, w3)" + LAST.replace("y =", "r =") + " y = Add (l, r)"
    small = reduced(Case(image(nodes, W2 + ", float[5,8,1,1] w3"), {"last": HALF}))
    assert "Gather" not in operators(small)
    assert operators(small).count("Slice") == 1
    assert shape_of(small, "w1") == (8, 3, 3, 3)


def test_several_readers_with_different_choices_leave_their_union() -> None:
    nodes = "[left] l = Conv (a, w2) [right] r = Conv (a, w3) y = Add (l, r)"
    left, right = np.arange(8) < 4, (np.arange(8) >= 2) & (np.arange(8) < 6)
    small = reduced(Case(image(nodes, W2 + ", float[5,8,1,1] w3"), {"left": left, "right": right}))
    assert shape_of(small, "w1") == (6, 3, 3, 3)
    assert shape_of(small, "w2") == shape_of(small, "w3") == (5, 4, 1, 1)


def test_siblings_share_one_gather() -> None:
    text = """
    graph (float[N,5,8] x) => (float[N,5,8] y, float[N,5,8] k, float[N,5,8] v)
    <float[8,8] wq, float[8,8] wk, float[8,8] wv> {
        z = Erf (x)
        [q] y = MatMul (z, wq) [k] k = MatMul (z, wk) [v] v = MatMul (z, wv)
    }"""
    small = reduced(Case(text, dict.fromkeys("qkv", every(2, 8, first=1))))
    assert operators(small).count("Gather") == 1


@pytest.mark.parametrize("gather", ["a", "b"])
def test_shared_initializer_is_cut_for_one_reader_only(gather: str) -> None:
    text = """
    graph (float[N,8] x) => (float[N,8] y, float[N,8] z) <float[8,8] w> {
        [a] p = MatMul (x, w) q = Relu (p)
        [b] y = MatMul (q, w)
        [c] z = MatMul (x, w)
    }"""
    small = reduced(Case(text, {gather: HALF}))
    assert shape_of(small, "w") == (8, 8)


def test_constant_that_is_a_graph_output_stays_whole() -> None:
    text = """
    graph (float[N,8] x) => (float[N,4] y, float[8] b) <float[8,8] w1, float[8] b, float[8,4] w2> {
        [first] p = MatMul (x, w1) q = Add (p, b)
        [last] y = MatMul (q, w2)
    }"""
    small = reduced(Case(text, {"last": HALF}))
    assert shape_of(small, "w1") == (8, 4)


def test_product_before_its_bias_as_a_graph_output_stays_whole() -> None:
    text = """
    graph (float[N,8] x) => (float[N,8] p, float[N,4] y) <float[8,8] w1, float[8] b, float[8,4] w2> {
        [first] p = MatMul (x, w1) q = Add (p, b)
        [last] y = MatMul (q, w2)
    }"""
    assert shape_of(reduced(Case(text, {"last": HALF})), "w1") == (8, 8)


def test_branches_that_read_an_outer_tensor_keep_it_whole() -> None:
    text = """
    graph (float[N,3,6,6] x, bool c) => (float[N,5,6,6] y, float[N,8,6,6] s) <float[8,3,1,1] w1, float[5,8,1,1] w2> {
        [first] a = Conv (x, w1)
        [last] y = Conv (a, w2)
        s = If (c) <then_branch: graph = t () => (float[N,8,6,6] u) { u = Relu (a) },
                    else_branch: graph = e () => (float[N,8,6,6] v) { v = Neg (a) }>
    }"""
    assert shape_of(reduced(Case(text, {"last": HALF})), "w1") == (8, 3, 1, 1)


def test_loop_body_that_reads_an_outer_tensor_keeps_it_whole() -> None:
    text = """
    graph (float[N,8] x) => (float[N,4] y, float[N,8] s) <float[8,8] w1, float[8,4] w2, int64 trips, bool go> {
        [first] a = MatMul (x, w1)
        [last] y = MatMul (a, w2)
        s = Loop (trips, go, x) <body: graph = b (int64 i, bool c, float[N,8] p) => (bool d, float[N,8] q) {
            d = Identity (c)
            q = Add (p, a)
        }>
    }"""
    small = reduced(Case(text, {"last": HALF}), trips=np.array(3), go=np.array(True))
    assert shape_of(small, "w1") == (8, 8)


@pytest.mark.parametrize("index", [0, 1, -3, -1])
def test_reader_of_one_dimension_does_not_stop_it(index: int) -> None:
    nodes = "s = Shape (a) n = Gather (s, i)" + LAST.replace("(z", "(a")
    case = Case(
        image(nodes, W2 + ", int64[1] i", "float[N,5,6,6] y, int64[1] n").replace("float[N,3,6,6]", "float[N,3,H,W]"),
        {"last": HALF},
    )
    small = reduced(case, i=np.array([index]))
    assert shape_of(small, "w1") == (4, 3, 3, 3)


@pytest.mark.parametrize(("end", "channels"), [(4, 8), (1, 4)])
def test_reader_of_several_dimensions_fixes_the_channels_if_they_are_among_them(end: int, channels: int) -> None:
    nodes = "s = Shape (a) r = Slice (s, from, to) n = ReduceProd <keepdims = 0> (r)" + LAST.replace("(z", "(a")
    text = image(nodes, W2 + ", int64[1] from, int64[1] to", "float[N,5,6,6] y, int64 n")
    small = reduced(Case(text, {"last": HALF}), **{"from": np.array([0]), "to": np.array([end])})
    assert shape_of(small, "w1") == (channels, 3, 3, 3)


def test_shape_that_is_a_graph_output_fixes_the_channels() -> None:
    text = image("s = Shape (a)" + LAST.replace("(z", "(a"), W2, "float[N,5,6,6] y, int64[4] s")
    assert shape_of(reduced(Case(text, {"last": HALF})), "w1") == (8, 3, 3, 3)


def test_second_outputs_that_leave_the_graph_fix_the_channels() -> None:
    text = image("z, i = MaxPool <kernel_shape = [2,2]> (a)" + LAST, W2, "float[N,5,5,5] y, int64[N,8,5,5] i")
    assert shape_of(reduced(Case(text, {"last": HALF})), "w1") == (8, 3, 3, 3)


def test_product_with_a_vector_is_followed_correctly() -> None:
    text = """
    graph (float[N,8,6] x) => (float[N,4] y) <float[8,8] w1, float[6] v, float[8,4] w2> {
        [first] a = MatMul (w1, x)
        z = MatMul (a, v)
        [last] y = Gemm (z, w2)
    }"""
    reduced(Case(text, {"last": HALF}))


def test_unknown_shapes_behind_a_custom_operator_do_not_stop_it() -> None:
    text = """
    graph (float[N,3,6,6] x) => (float[N,q,h,w] y) <float[8,3,3,3] w1, float[5,8,1,1] w2> {
        q = com.microsoft.Gelu (x)
        f = com.microsoft.BiasSplitGelu (q)
        [first] a = Conv (q, w1)
        z = Transpose <perm = [0,1,3,2]> (a)
        [last] y = Conv (z, w2)
    }"""
    small = reduced(Case(text.replace("f = com.microsoft.BiasSplitGelu (q)", ""), {"last": HALF}))
    assert "Gelu" in operators(small)


def test_reshape_by_a_copied_dimension_of_equal_length() -> None:
    """The 0 copies the second axis, which is shortened, into the last one, which is not."""
    text = """
    graph (float[2,6,6] x) => (float[12,4] y) <float[6,6] w1, float[6,4] w2, int64[2] rows> {
        [first] a = MatMul (w1, x)
        z = Reshape (a, rows)
        [last] y = Gemm (z, w2)
    }"""
    reduced(Case(text, {"last": every(2, 6)}), rows=np.array([12, 0]))
    reduced(Case(text.replace("MatMul (w1, x)", "MatMul (x, w1)"), {"last": every(2, 6)}), rows=np.array([12, 0]))


DYNAMIC_FLATTEN = image(
    "s = Shape (a) b = Gather (s, zero) u = Unsqueeze {axes} t = Concat <axis = 0> (u, rest) z = Reshape (a, t)"
    "[last] y = Gemm (z, w2)",
    "float[288,4] w2, int64 zero, int64[1] rest, int64[1] ax",
    "float[N,4] y",
)


@pytest.mark.parametrize(("axis", "rows"), [(2, 8), (1, 32), (0, 64), (-1, 8), (-2, 32)])
def test_flatten_at_every_axis(axis: int, rows: int) -> None:
    text = f"""graph (float[2,4,3] x) => (float[m,5] y) <float[3,8] w1, float[{rows},5] w2> {{
        [first] p = MatMul (x, w1)  a = Relu (p)  z = Flatten <axis = {axis}> (a)  [last] y = MatMul (z, w2)
    }}"""
    reduced(Case(text, {"last": np.tile(HALF, rows // 8)}))


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 21, NEWEST_OPSET])
def test_dynamic_flatten(opset: int) -> None:
    text = DYNAMIC_FLATTEN.replace("{axes}", "(b, ax)" if opset >= 13 else "<axes = [0]> (b)")
    if opset < 11:
        text = text.replace("Gemm (z, w2)", "Gemm (z, w2, bias)").replace("int64[1] ax", "int64[1] ax, float[4] bias")
    case = Case(text, {"last": np.repeat(HALF, 36)}, opset=opset)
    small = reduced(case, zero=np.array(0), rest=np.array([-1]), ax=np.array([0]))
    assert shape_of(small, "w1") == (4, 3, 3, 3)
    assert operators(small) == ["Conv", "Reshape", "Gemm"]


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 21, NEWEST_OPSET])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_chain_at_every_opset(opset: int, batch: int) -> None:
    small = reduced(Case(image("z = Relu (a)" + LAST, W2), {"last": HALF}, opset=opset, feeds={"N": batch}))
    assert [o.version for o in small.opset_import if o.domain == ""] == [opset]
    assert shape_of(small, "w1") == (4, 3, 3, 3)


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 21, NEWEST_OPSET])
@pytest.mark.parametrize("kept", [np.arange(8) < 4, every(2, 8)], ids=["prefix", "scattered"])
def test_gather_or_slice_at_every_opset(opset: int, kept: Array) -> None:
    text = "graph (float[N,8,5,5] x) => (float[N,5,5,5] y) <float[5,8,1,1] w> { [only] y = Conv (x, w) }"
    small = reduced(Case(text, {"only": kept}, opset=opset))
    assert operators(small)[0] == ("Slice" if kept[:4].all() else "Gather")


@pytest.mark.parametrize("opset", [12, 17, 21, NEWEST_OPSET])
def test_different_channels_at_different_taps_become_a_kept_conv(opset: int) -> None:
    kept = np.random.default_rng(1).random((1, 9, 8)) < 0.5
    small = reduced(
        Case(image("z = Relu (a) [last] y = Conv (z, w2)", "float[5,8,3,3] w2"), {"last": kept}, opset=opset)
    )
    assert operators(small) == ["Conv", "Relu", "KeptConv"]


def test_channel_dead_at_every_tap_is_absorbed_before_a_kept_conv() -> None:
    kept = np.random.default_rng(1).random((1, 9, 8)) < 0.5
    kept[:, :, [2, 5]] = False
    small = reduced(Case(image("z = Relu (a) [last] y = Conv (z, w2)", "float[5,8,3,3] w2"), {"last": kept}))
    assert shape_of(small, "w1") == (6, 3, 3, 3)


def test_everything_dead_leaves_one_channel() -> None:
    small = reduced(
        Case(
            image("z = Relu (a)" + LAST, W2 + ", float[5] b2").replace("(z, w2)", "(z, w2, b2)"),
            {"last": np.zeros(8, dtype=bool)},
        )
    )
    assert shape_of(small, "w1")[0] == 1
