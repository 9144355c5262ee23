"""Convolution regions with channels last: which operators are inside, where transposes remain, and the same results."""

import numpy as np
import onnx
import pytest
from generator import Builder
from models import feed_for, model, packed_products
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
    return finish(graph, proto, {}).whole(), made


def count(proto, op):
    return sum(node.op_type.startswith(op) for node in proto.graph.node)


def moves(proto):
    return count(proto, "Transpose") + count(proto, "DeftChannelsLast")


def distance(proto, like, feed):
    pairs = zip(outputs(proto, feed), outputs(like, feed), strict=True)
    return max(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3) for a, b in pairs)


def residual(channels):
    text = RESIDUAL.replace("CHANNELS", str(channels)).replace("N,C,H,W", f"N,{channels},12,12")
    return model(text)


@pytest.mark.parametrize("image", ["16,16", "16", "1,16"])
def test_channels_of_the_length_of_the_image_are_transposed_all_the_same(image):
    axes = len(image.split(","))
    pads = [1] * 2 * axes
    proto = model(
        f"""g (float[N,16,{image}] x) => (float[N,16,{image}] y) <float[16,16,{",".join("33"[:axes])}] w> {{
            y = Conv <pads={pads}> (x, w) }}"""
    )
    result, made = rewritten(proto)
    assert len(made) == 1
    assert count(result, "Transpose") == 2
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize("channels", [3, 8])
def test_residual_network(channels):
    proto = residual(channels)
    result, made = rewritten(proto)
    assert len(made) == 4
    assert count(result, "Relu") == count(result, "Add") == count(result, "GlobalAveragePool") == 0
    assert count(result, "Pad") == 0
    assert count(result, "DeftChannelsLast") == (channels == 3)
    assert moves(result) == 1  # into the region
    assert count(result, "DeftPool") == 2
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize(
    ("image", "ours"),
    [("3,70,64", True), ("2,8192", True), ("7,16,16", True), ("3,H,W", True), ("9,64,64", False), ("1,8,8", False)],
)
def test_images_of_few_channels_come_in_by_one_kernel(image, ours):
    channels, *axes = image.split(",")
    proto = model(
        f"""g (float[N,{image}] x) => (float[N,8,{",".join("PQ"[: len(axes)])}] y)
        <float[8,{channels},{",".join("33"[: len(axes)])}] w> {{ y = Conv (x, w) }}"""
    )
    result, made = rewritten(proto)
    assert len(made) == 1
    assert count(result, "DeftChannelsLast") == ours
    assert count(result, "Transpose") == 2 - (ours or channels == "1")  # an image of grey is there already
    assert distance(result, proto, feed_for(proto, N=2, H=40, W=40)) <= 2e-3


PATCHES = """g (float[N,C,H,W] x) => (float[N,4] y) <float[OUTPUTS,C,KERNEL] w, float[OUTPUTS] b, float[4,OUTPUTS] v> {
    a = Conv <strides=[STRIDES]> (x, w, b) p = GlobalAveragePool (a) q = Flatten (p) y = Gemm <transB=1> (q, v) }"""


@pytest.mark.parametrize(
    ("image", "kernel", "strides", "outputs", "windows"),
    [
        ((3, 16, 24), (4, 8), (4, 8), 16, True),
        ((3, 16, 24), (8, 8), (8, 8), 12, True),  # output channels to fill
        ((1, 8, 8), (4, 4), (4, 4), 16, True),
        ((3, 18, 24), (4, 8), (4, 8), 16, False),  # a rest of the image
        ((3, 16, 24), (4, 8), (4, 4), 16, False),  # windows overlap
        ((3, 15, 15), (3, 3), (3, 3), 16, False),  # 27 features
        ((8, 16, 24), (4, 8), (4, 8), 16, False),  # whole loads of channels as it is
        ((3, "H", "W"), (4, 8), (4, 8), 16, False),
    ],
)
def test_windows_side_by_side(image, kernel, strides, outputs, windows):
    text = PATCHES.replace("C,H,W", ",".join(map(str, image))).replace(
        "C,KERNEL", f"{image[0]},{kernel[0]},{kernel[1]}"
    )
    text = text.replace("OUTPUTS", str(outputs)).replace("STRIDES", f"{strides[0]},{strides[1]}")
    proto = model(text)
    result, made = rewritten(proto)
    (attributes,) = ({a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in made_nodes(result))
    assert (list(attributes["kernel_shape"]) == [1, 1]) == windows
    assert len(made) == 1
    assert distance(result, proto, feed_for(proto, N=3, H=16, W=24)) <= 2e-3


def made_nodes(proto):
    return [node for node in proto.graph.node if node.op_type.startswith("DeftConv")]


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
    "softmax of channels": "y = Softmax <axis=1> (a)",
    "softmax of columns": "y = LogSoftmax (a)",
    "split": "b, c = Split <axis=1> (a, halves) y = Concat <axis=1> (c, b)",
    "gather": "y = Gather <axis=-3> (a, some)",
    "slice": "y = Slice (a, from, to, over, step)",
    "pad": "y = Pad (a, amounts, k)",
    "resize": "y = Resize (a, , scales)",
    "resize between": 'y = Resize <mode="linear"> (a, , scales)',
    "where": "b = Less (a, k) y = Where (b, a, shift)",
    "batch norm": "b = Mul (a, shift) y = Sub (b, slope)",
}


@pytest.mark.parametrize("case", MOVES)
def test_operators_behind_a_convolution(case):
    proto = model(
        f"""g (float[N,8,5,6] x) => (float[A,B,D,E] y) <float[8,8,3,3] w, float k, float low, float high, float[8,1,1] shift,
        float[8,1,1] slope, float[1,1,5,6] plane, int64[4] flat, int64[2] halves,
        int64[3] some, int64[2] from, int64[2] to, int64[2] over, int64[2] step, int64[8] amounts, float[4] scales> {{
        a = Conv <pads=[1,1,1,1]> (x, w) {MOVES[case]} }}""".replace(
            "[A,B,D,E] y", "[A,B] y" if case == "mean without dimensions" else "[A,B,D,E] y"
        ),
        k=np.array(0.7),
        low=np.array(-0.2),
        high=np.array(0.5),
        flat=np.array([0, 8, 5, 6]),
        halves=np.array([3, 5]),
        some=np.array([7, 0, -3]),
        step=np.array([2, 1]),
        over=np.array([-1, 1]),
        amounts=np.array([0, 2, 1, 0, 0, 1, 0, 3]),
        scales=np.array([1, 1, 2, 3]),
        **{"from": np.array([1, 2]), "to": np.array([6, 7])},
    )
    result, made = rewritten(proto)
    assert len(made) == 1
    # into the region, out of it, and twice around a Reshape
    assert moves(result) == {"mean without dimensions": 1, "other rank": 4}.get(case, 2)
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize(
    ("attributes", "weight", "taken"),
    [
        ("group=2", [16, 8, 3, 3], True),
        ("group=4", [16, 4, 3, 3], True),
        ("group=16", [16, 1, 3, 3], True),
        ("group=16", [32, 1, 3, 3], True),
        ("dilations=[2,1]", [8, 16, 2, 3], True),
        ("group=1", [6, 16, 3, 3], True),
    ],
)
def test_which_convolutions(attributes, weight, taken):
    text = f"g (float[N,16,9,8] x) => (float[N,M,H,W] y) <float{weight} w> {{ y = Conv <{attributes}> (x, w) }}"
    proto = model(text)
    result, made = rewritten(proto)
    assert len(made) == taken
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize("format_name", ["deft8:2", "deft8:4", "deft16", "deft16q"])
def test_formats_that_round_are_no_mistake(format_name):
    proto = residual(3)
    feed = feed_for(proto, N=4)
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", format=format_name, measure=False)
    formats = {a.s.decode() for n in result.model.graph.node for a in n.attribute if a.name == "format"}
    assert formats == {format_name}
    assert 1e-6 < distance(result.model, proto, feed) <= (0.3 if format_name.startswith("deft8") else TOLERANCE)


@pytest.mark.parametrize(("size", "pads"), [(3, 0), (20, 1)])
def test_only_large_filters_of_few_channels_are_filled_up(size, pads):
    text = f"g (float[N,3,24,24] x) => (float[N,8,H,W] y) <float[8,3,{size},{size}] w> {{ y = Conv (x, w) }}"
    proto = model(text)
    result, made = rewritten(proto)
    assert len(made) == 1
    assert count(result, "Pad") == pads
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize("seed", range(30, 60))
def test_random_graphs(seed):
    proto = Builder(seed).build(steps=12)
    feed = feed_for(proto, seed)
    result, _ = rewritten(proto)
    assert distance(result, proto, feed) <= TOLERANCE


POOLING = {
    "max": "b = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (a)",
    "max and activation": "c = MaxPool <kernel_shape=[2,2], ceil_mode=1, strides=[2,2]> (a) b = Relu (c)",
    "max with places": "b, i = MaxPool <kernel_shape=[2,2]> (a) c = Cast <to=1> (i)",
    "same size": 'b = MaxPool <kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER"> (a)',
    "average": "b = AveragePool <kernel_shape=[3,2], pads=[1,1,0,0]> (a)",
    "average of padding": ("b = AveragePool <kernel_shape=[3,3], strides=[2,2], count_include_pad=1, ceil_mode=1> (a)"),
    "whole image": "b = GlobalMaxPool (a)",
    "squeeze and excite": "c = GlobalAveragePool (a) d = Conv (c, v) e = Sigmoid (d) b = Mul (a, e)",
    "normalisation of channels": "b = LRN <size=5, alpha=0.3, beta=0.6, bias=2.0> (a)",
    "normalisation of the image": (
        "c = Mul (a, a) d = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (c) e = Mul (d, k)"
        "f = Add (one, e) g = Pow (f, k) b = Div (a, g)"
    ),
    "normalisation by a product": (
        "c = Mul (a, a) d = AveragePool <kernel_shape=[1,1]> (c) e = Mul (d, k) f = Add (e, one) g = Pow (f, minus)"
        "b = Mul (a, g)"
    ),
    "normalisation of channels written out": (
        "c = Mul (a, a) d = Reshape (c, apart) e = Pad (d, amounts) f = AveragePool <kernel_shape=[5,1,1]> (e)"
        "h = Squeeze (f, first) i = Reshape (h, whole) j = Mul (i, k) l = Add (j, one) m = Pow (l, k) b = Div (a, m)"
    ),
    "normalisation of channels with a choice": (
        "c = Mul (a, a) d = Reshape (c, apart) e = Pad (d, amounts) f = AveragePool <kernel_shape=[5,1,1]> (e)"
        "h = If (yes) <then_branch = t () => (float[P,C,Q,R] o) { o = Squeeze (f, first) },"
        " else_branch = e () => (float[P,U,C,Q,R] p) { p = Identity (f) }>"
        "i = Reshape (h, whole) j = Mul (i, k) l = Add (j, one) m = Pow (l, k) b = Div (a, m)"
    ),
    "a division of something else": (
        "c = Mul (a, a) d = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (c) e = Mul (d, k)"
        "f = Add (one, e) g = Pow (f, k) b = Div (a, g)"
    ),
}


@pytest.mark.parametrize("channels", [8, 20])
@pytest.mark.parametrize("case", POOLING)
def test_pooling_between_convolutions(case, channels):
    text = POOLING[case]
    proto = model(
        f"""g (float[N,3,9,10] x) => (float[N,6,D,E] y) <float[{channels},3,3,3] w, float[{channels}] bias,
        float[{channels},{channels},1,1] v, float[6,{channels},1,1] u, float k, float one, float minus,
        int64[5] apart, int64[10] amounts, int64[1] first, int64[4] whole, bool yes> {{
        a = Conv <pads=[1,1,1,1]> (x, w, bias) {text} y = Conv (b, u) }}""",
        k=np.array(0.75),
        one=np.array(1.0),
        minus=np.array(-0.5),
        apart=np.array([-1, 1, channels, 9, 10]),
        amounts=np.array([0, 0, 2, 0, 0, 0, 0, 2, 0, 0]),
        first=np.array([1]),
        whole=np.array([-1, channels, 9, 10]),
        yes=np.array(True),
    )
    result, made = rewritten(proto)
    assert len(made) == 2 + (case == "squeeze and excite")
    assert count(result, "DeftPool") == 1
    # into the region, out of it, which is a Reshape for one pixel
    assert moves(result) == 2 - (case == "whole image")
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


def test_pooling_of_single_pixels_is_left_out():
    proto = model(
        """g (float[N,3,9,10] x) => (float[N,6,9,10] y) <float[12,3,3,3] w, float[6,12,1,1] u> {
        a = Conv <pads=[1,1,1,1]> (x, w) b = AveragePool <kernel_shape=[1,1]> (a)
        c = MaxPool <kernel_shape=[1,1], strides=[1,1]> (b) y = Conv (c, u) }"""
    )
    result, made = rewritten(proto)
    assert len(made) == 2
    assert count(result, "DeftPool") == count(result, "Pad") == 0
    assert moves(result) == 2
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize(("channels", "filled"), [(20, 32), (50, 64), (10, 16), (4, 8), (24, 24)])
def test_channels_are_filled_up_to_whole_loads_and_blocks(channels, filled):
    proto = model(
        f"""g (float[N,3,9,10] x) => (float[N,6,9,10] y) <float[{channels},3,3,3] w, float[6,{channels},1,1] u> {{
        a = Conv <pads=[1,1,1,1]> (x, w) y = Conv (a, u) }}"""
    )
    result, made = rewritten(proto)
    first, second = (node.attrs for node in made.values())
    assert first["N"] == second["channels"] == filled
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


LEAVING = {
    "flatten": ("b = Flatten (a) y = Gemm <transB=1> (b, wt, c)", 1),
    "reshape": ("b = Reshape (a, flat) d = Relu (b) y = MatMul (d, w)", 1),
    "two readers": ("b = Flatten (a) d = MatMul (b, w) e = Gemm (b, w) y = Add (d, e)", 1),
    "a reader that is no product": (
        "b = Flatten (a) d = MatMul (b, w) e = Slice (b, zero, four, one) y = Add (d, e)",
        2,
    ),
    "one pixel": ("p = GlobalAveragePool (a) b = Flatten (p) y = Gemm (b, w2, c)", 1),
    "squeezed": ("p = GlobalMaxPool (a) b = Squeeze (p, image) y = MatMul (b, w2)", 1),
    "sequence of pixels": ("b = Reshape (a, pixels) s = Transpose <perm=[0,2,1]> (b) y = MatMul (s, w2)", 1),
    "sequence of so many pixels": (
        "b = Reshape <allowzero=1> (a, pixels2) s = Transpose <perm=[0,2,1]> (b) y = MatMul (s, w2)",
        1,
    ),
    "sequence by shape": (
        "h = Shape (a) i = Slice (h, zero, two) j = Concat <axis=0> (i, last) b = Reshape (a, j)"
        "s = Transpose <perm=[0,2,1]> (b) y = MatMul (s, w2)",
        1,
    ),
    "permuted": ("s = Transpose <perm=[0,2,3,1]> (a) y = MatMul (s, w2)", 1),
    "permuted otherwise": ("s = Transpose <perm=[0,3,2,1]> (a) y = MatMul (s, w2)", 2),
    "permuted and back": (
        "s = Transpose <perm=[0,2,3,1]> (a) d = MatMul (s, w2) e = Transpose <perm=[0,3,1,2]> (d) y = Conv (e, v)",
        2,
    ),
}


@pytest.mark.parametrize("channels", [8, 12])
@pytest.mark.parametrize("case", LEAVING)
def test_the_end_of_a_region(case, channels):
    text, transposes = LEAVING[case]
    features = channels * 20
    proto = model(
        f"""g (float[N,8,4,5] x) => (float[A,B] y) <float[{channels},8,3,3] k, float[{features},4] w,
        float[4,{features}] wt, float[4] c, float[{channels},4] w2, int64[2] flat, int64[2] image, int64[3] pixels, int64[3] pixels2,
        int64[1] zero, int64[1] two, int64[1] one, int64[1] four, int64[1] last, float[8,4,1,1] v> {{
        a = Conv <pads=[1,1,1,1]> (x, k) {text} }}""".replace(
            "float[A,B] y", "float[A,B] y" if case in list(LEAVING)[:6] else "float y"
        ).replace("float y", "float[A,B,C] y" if "sequence" in case else "float[A,B,C,D] y"),
        flat=np.array([-1, features]),
        image=np.array([2, 3]),
        pixels=np.array([0, channels, -1]),
        pixels2=np.array([-1, channels, 20]),
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
        four=np.array([4]),
        last=np.array([-1]),
    )
    result, made = rewritten(proto)
    assert len(made) == 1 + (case == "permuted and back")
    assert moves(result) == transposes
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize("format_name", ["half", "deft16", "deft8:auto", "deft16q"])
def test_packed_weights_behind_a_region(format_name):
    proto = model(
        """g (float[N,1,14,14] x) => (float[N,10] y) <float[20,1,5,5] k, float[20] kb, float[50,20,3,3] l, float[800,30] w,
        float[30] b, float[30,10] v> { c0 = Conv (x, k, kb) p0 = MaxPool <kernel_shape=[2,2], strides=[2,2]> (c0)
        c1 = Conv <pads=[1,1,1,1]> (p0, l) p1 = MaxPool <kernel_shape=[2,2], strides=[1,1]> (c1) f = Flatten (p1)
        h = Gemm (f, w, b) r = Relu (h) y = MatMul (r, v) }"""
    )
    feed = feed_for(proto, N=3)
    options = {"preset": "dense16", "format": format_name, "decide_by": "nothing"}
    result = deftonnx.optimize(proto, calib_data=feed, measure=False, **options)
    assert count(result.model, "DeftConv") == packed_products(result.model) == 2
    assert count(result.model, "DeftPool") == 1  # the other one is inside the convolution of few channels
    assert count(result.model, "Transpose") == (format_name == "deft16q")  # two features a code are not permuted
    assert count(result.model, "Slice") == (format_name == "deft16q")
    assert count(result.model, "Cast") == 1  # the last product writes float32
    assert distance(result.model, proto, feed) <= (0.15 if format_name.startswith("deft8") else TOLERANCE)


DENSE = """g (float[N,8,12,12] x) => (float[N,4,12,12] y)
    <float[16,8,3,3] u, float[32,40,1,1] v, float[4,72,1,1] w, float[24,8,3,3] r,
     float[40] s0, float[40] t0, float[40] m0, float[72] s1, float[72] t1, float[72] m1> {
    a = Conv <pads=[1,1,1,1]> (x, u) b = Conv <pads=[1,1,1,1]> (x, r) c = Concat <axis=1> (a, b)
    n = BatchNormalization (c, s0, t0, m0, v0) p = Relu (n) d = Conv (p, v) e = Concat <axis=1> (c, d)
    o = BatchNormalization (e, s1, t1, m1, v1) q = Relu (o) y = Conv (q, w) }"""


def test_normalisation_that_no_convolution_takes_in_is_one():
    rng = np.random.default_rng(2)
    text = DENSE.replace("float[40] s0", "float[40] v0, float[40] s0").replace(
        "float[72] s1", "float[72] v1, float[72] s1"
    )
    proto = model(text, v0=rng.uniform(0.5, 2, 40), v1=rng.uniform(0.5, 2, 72))
    result, made = rewritten(proto)
    assert len(made) == 6
    assert count(result, "BatchNormalization") == count(result, "Relu") == 0
    assert moves(result) == 2
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


def test_what_follows_a_transpose_to_channels_first_moves_before_it():
    proto = model(
        """g (float[N,8,12,12] x) => (float[N,8,6,6] y)
        <float[8,8,3,3] u, float[8,8,2,2] v, float[8] s, float[8] t, float[8,1,1] k, float[8,8] w> {
        a = Conv <pads=[1,1,1,1]> (x, u) b = Transpose <perm=[0,2,3,1]> (a) c = LayerNormalization <axis=-1> (b, s, t)
        d = MatMul (c, w) r = Softmax (d) e = Transpose <perm=[0,3,1,2]> (r) f = Mul (e, k) h = Add (f, a)
        y = Conv <strides=[2,2]> (h, v) }"""
    )
    result, made = rewritten(proto)
    assert len(made) == 2
    assert moves(result) == 2
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize(("image", "pools"), [("28,28", 2), ("27,31", 2), ("7,7", 1), ("29,31", 1), ("H,W", 1)])
@pytest.mark.parametrize("op", ["GlobalAveragePool (a)", "ReduceMean <axes=[2,3]> (a)", "GlobalMaxPool (a)"])
def test_large_images_are_pooled_in_two_steps(image, pools, op):
    text = f"g (float[N,8,{image}] x) => (float[N,8,1,1] y) <float[8,8,1,1] w> {{ a = Conv (x, w) y = {op} }}"
    proto = model(text, opset=17)
    result, _ = rewritten(proto)
    assert count(result, "DeftPool") == pools
    assert distance(result, proto, feed_for(proto, N=2, H=28, W=28)) <= 2e-3


@pytest.mark.parametrize("channels", [12, 20, 24])
def test_convolutions_of_one_channel_a_group_are_filled_up(channels):
    proto = model(
        f"""g (float[N,{channels},9,9] x) => (float[N,{channels},9,9] y)
        <float[{channels},{channels},1,1] u, float[{channels},1,3,3] w, float[{channels}] b> {{
        a = Conv (x, u) r = Relu (a) y = Conv <pads=[1,1,1,1], group={channels}> (r, w, b) }}"""
    )
    result, made = rewritten(proto)
    assert len(made) == 2
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


def test_a_lone_convolution_of_one_channel_a_group():
    proto = model(
        """g (float[N,12,9,9] x) => (float[N,12,9,9] y) <float[12,1,3,3] w> {
        y = Conv <pads=[1,1,1,1], group=12> (x, w) }"""
    )
    result, made = rewritten(proto)
    assert len(made) == count(result, "Pad") == 1
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


SHUFFLE = """g (float[N,24,6,6] x) => (float[N,16,6,6] y)
    <float[24,24,1,1] u, float[16,24,1,1] v, int64[5] part, int64[4] join> {
    a = Conv (x, u) p = Reshape (a, part) t = Transpose <perm=[PERM]> (p) j = Reshape (t, join) y = Conv (j, v) }"""


@pytest.mark.parametrize(("perm", "inside"), [("0,2,1,3,4", True), ("0,1,2,4,3", False)])
def test_a_shuffle_of_channels_keeps_them_last(perm, inside):
    values = {"part": [-1, 2, 12, 6, 6], "join": [-1, 24, 6, 6]}
    text = SHUFFLE.replace("PERM", perm)
    proto = model(text, **{name: np.array(value, np.int64) for name, value in values.items()})
    result, made = rewritten(proto)
    assert len(made) == 2
    assert count(result, "Transpose") == (3 if inside else 5)
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


@pytest.mark.parametrize(("channels", "outputs", "groups", "taken"), [
    (32, 32, 8, True), (32, 64, 8, True), (24, 24, 12, True), (64, 64, 4, True), (12, 12, 3, False), (40, 40, 5, True),
])  # fmt: skip
def test_small_groups_are_joined(channels, outputs, groups, taken):
    proto = model(
        f"""g (float[N,{channels},9,9] x) => (float[N,{outputs},9,9] y)
        <float[{outputs},{channels // groups},3,3] w, float[{outputs}] b> {{
        y = Conv <pads=[1,1,1,1], group={groups}> (x, w, b) }}"""
    )
    result, made = rewritten(proto)
    assert bool(made) == taken
    assert distance(result, proto, feed_for(proto, N=2)) <= 2e-3


def test_the_library_is_told_the_sizes_of_images():
    """Whatever the batch is, all convolutions of a session are known in its first run."""
    proto = model("""g (float[N,8,13,9] x) => (float[N,16,P,Q] y) <float[16,8,3,3] w, float[16,16,1,1] v> {
        a = Conv <strides=[2,2]> (x, w) b = Relu (a) c = MaxPool <kernel_shape=[2,2]> (b) y = Conv (c, v) }""")
    result = deftonnx.optimize(proto, preset="dense16", decide_by="nothing", measure=False).model
    told = {value.name: value.type.tensor_type for value in result.graph.value_info}
    read = [node.input[0] for node in result.graph.node if node.op_type == "DeftConv"]
    sizes = [[d.dim_value for d in told[name].shape.dim[1:-1]] for name in read]
    assert sizes == [[13, 9], [5, 3]]
    assert len(told) == len(read)
    assert distance(result, proto, feed_for(proto, N=3)) <= 2e-3


def test_sizes_of_images_that_are_free_are_not_told():
    proto = model("g (float[N,8,H,W] x) => (float[N,8,H,W] y) <float[8,8,1,1] w> { y = Conv (x, w) }")
    result = deftonnx.optimize(proto, preset="dense16", decide_by="nothing", measure=False).model
    assert count(result, "DeftConv") == 1
    assert not result.graph.value_info
