"""Attention with rotary embeddings, shared keys and causal masks becomes DeftAttention."""

import numpy as np
import onnx
import pytest
from exported import DECODERS, exported, feeds
from fused_model import distance, fused
from models import model
from models import run as outputs

import deftonnx
from deftonnx.precision import TOLERANCE

RNG = np.random.default_rng(5)


def ops(proto):
    return [node.op_type for node in proto.graph.node]


def attentions(proto):
    """The attributes and the number of inputs that are there of each DeftAttention."""
    found = [node for node in proto.graph.node if node.op_type == "DeftAttention"]
    return [({a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}, sum(map(bool, n.input))) for n in found]


@pytest.mark.parametrize("name", DECODERS)
def test_exported_models(name):
    proto, feed = exported(name), feeds(name)
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", measure=False)
    assert not result.report.left_in_float32
    found = ops(result.model)
    assert found.count("DeftGemm") == 2 * 5 + 1
    assert found.count("SkipSimplifiedLayerNormalization") == 2 * 2 + 1
    assert {"Softmax", "MatMul", "Neg", "Sigmoid", "Transpose"}.isdisjoint(found)
    for attributes, inputs in attentions(result.model):
        assert (attributes["num_heads"], attributes["num_kv_heads"], attributes["causal"]) == (4, 2, 1)
        assert inputs == (2 if name.endswith("unmasked") else 3)
    assert len(attentions(result.model)) == 2
    for other in (feed, feeds(name, batch=2, length=6, seed=3), feeds(name, batch=1, length=11, seed=4)):
        assert distance(result.model, proto, other) <= TOLERANCE


def test_again_and_from_its_plan():
    name = DECODERS[0]
    proto, feed = exported(name), feeds(name)
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", measure=False)
    replayed = deftonnx.optimize(proto, calib_data=feed, plan=result.plan, measure=False)
    assert ops(replayed.model) == ops(result.model)
    again = deftonnx.optimize(result.model, calib_data=feed, preset="dense16", measure=False)
    assert distance(again.model, proto, feed) <= TOLERANCE


# 4 heads of 16 features, 2 of keys and values
DECODER = """g (float[N,S,24] x, float[N,1,1,S] padding, float[N,S,16] c, float[N,S,16] s) => (float[N,S,24] y)
    <float[24,64] wq, float[24,32] wk, float[24,32] wv, float[64,24] wo, float one, float zero, float low, float half,
     int64 first, int64 width, int64 begin, int64 step, int64[4] sh, int64[3] out, int64[1] heads, int64[5] shared, int64[4] flat,
     int64[1] i0, int64[1] i8, int64[1] end, int64[1] last, int64[1] i1, int64[1] i2> {{
    q0 = MatMul (x, wq) k0 = MatMul (x, wk) v0 = MatMul (x, wv)
    q1 = Reshape (q0, sh) k1 = Reshape (k0, sh) v1 = Reshape (v0, sh)
    q2 = Transpose <perm=[0,2,1,3]> (q1) k2 = Transpose <perm=[0,2,1,3]> (k1) v2 = Transpose <perm=[0,2,1,3]> (v1)
    {angles} cosines = Unsqueeze (cc, heads) sines = Unsqueeze (ss, heads)
    qa = Slice (q2, i0, i8, last, i1) qb = Slice (q2, i8, end, last, i1) qn = Neg (qb) {rotated}
    qc = Mul (q2, cosines) qs = Mul (qr, sines) q = Add (qc, qs)
    ka = Slice (k2, i0, i8, last, i1) kb = Slice (k2, i8, end, last, i1) kn = Neg (kb) kr = Concat <axis=-1> (kn, ka)
    kc = Mul (k2, cosines) ks = Mul (sines, kr) k3 = Add (ks, kc)
    k4 = Unsqueeze (k3, i2) v4 = Unsqueeze (v2, i2) k5 = Expand (k4, shared) v5 = Expand (v4, shared)
    k6 = Reshape (k5, flat) v = Reshape (v5, flat) k = Transpose <perm=[0,1,3,2]> (k6)
    dims = Shape (x) length = Gather (dims, first) range = Range (begin, length, step)
    rows = Unsqueeze (range, i1) seen = LessOrEqual (range, rows)
    {mask} p = Softmax <axis=-1> (scores) z = MatMul (p, v)
    z1 = Transpose <perm=[0,2,1,3]> (z) z2 = Reshape (z1, out) y = MatMul (z2, wo) }}"""
NUMBERS = {
    "one": 1,
    "zero": 0,
    "low": -1e9,
    "half": 0.25,
    "first": 1,
    "width": 9,
    "begin": 0,
    "step": 1,
    "sh": [0, 0, -1, 16],
    "out": [0, 0, -1],
    "heads": [1],
    "shared": [1, 1, 2, 1, 1],
    "flat": [0, 4, -1, 16],
    "i0": [0],
    "i8": [8],
    "end": [16],
    "last": [3],
    "i1": [1],
    "i2": [2],
}
MASKS = {
    "none": ("d = MatMul (q, k) scores = Mul (d, half)", 0, 2),
    "causal": ("b = Where (seen, zero, low) d = MatMul (q, k) e = Mul (d, half) scores = Add (e, b)", 1, 2),
    "padding": ("d = MatMul (q, k) e = Mul (d, half) scores = Add (e, padding)", 0, 3),
    "both": (
        "o = Greater (padding, low) both = And (o, seen) b = Where (both, zero, low) d = MatMul (q, k)"
        " e = Mul (d, half) scores = Add (e, b)",
        1,
        3,
    ),
    "a window": (
        "near = Sub (rows, range) n = Less (near, width) both = And (n, seen) b = Where (both, zero, low)"
        " d = MatMul (q, k) e = Mul (d, half) scores = Add (e, b)",
        1,
        3,
    ),
    "a window and padding": (
        "near = Sub (rows, range) n = Less (near, width) o = Greater (padding, low) both = And (o, seen)"
        " all = And (n, both) b = Where (all, zero, low) d = MatMul (q, k) e = Mul (d, half) scores = Add (e, b)",
        1,
        3,
    ),
    "whole samples": (
        "most = ReduceMax <axes=[3], keepdims=1> (padding) o = Greater (most, low) both = And (o, seen)"
        " b = Where (both, zero, low) d = MatMul (q, k) e = Mul (d, half) scores = Add (e, b)",
        1,
        3,
    ),
    "past and some": (
        "f = Cast <to=1> (seen) g = Mul (f, half) d = MatMul (q, k) e = Mul (d, half) scores = Add (e, g)",
        0,
        3,
    ),
}


def decoder(mask="none", rotated="qr = Concat <axis=-1> (qn, qa)", angles="cc = Identity (c) ss = Identity (s)"):
    text = DECODER.format(mask=MASKS[mask][0], rotated=rotated, angles=angles)
    return model(text, **{name: np.array(value) for name, value in NUMBERS.items()})


def feed_of(batch=3, length=7, halves=True):
    angles = RNG.uniform(0, 7, (batch, length, 16))
    if halves:
        angles[..., 8:] = angles[..., :8]
    hidden = RNG.random((batch, 1, 1, length)) < 0.3
    hidden[..., 0] = False
    return {
        "x": RNG.standard_normal((batch, length, 24)).astype(np.float32),
        "padding": np.where(hidden, -2e9, 0).astype(np.float32),
        "c": np.cos(angles).astype(np.float32),
        "s": np.sin(angles).astype(np.float32),
    }


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask):
    proto, feed = decoder(mask), feed_of()
    result, reasons = fused(proto, feed)
    assert not reasons
    ((attributes, inputs),) = attentions(result)
    assert (attributes["causal"], inputs) == MASKS[mask][1:]
    assert (attributes["num_heads"], attributes["num_kv_heads"]) == (4, 2)
    assert ops(result).count("MatMul") == 2
    for other in (feed, feed_of(1, 4), feed_of(2, 1), feed_of(2, 14)):
        assert distance(result, proto, other) <= 1e-5


def test_conditions_on_whole_samples_are_no_bias():
    result, _ = fused(decoder("whole samples"), feed_of())
    (attention,) = (node for node in result.graph.node if node.op_type == "DeftAttention")
    (bias,) = (node for node in result.graph.node if attention.input[1] in node.output)
    assert "both" in bias.input  # with an axis for keys


def test_what_turns_the_other_way_is_no_rotary_embedding():
    proto = decoder(rotated="qr = Concat <axis=-1> (qa, qn)")
    result, reasons = fused(proto, feed_of())
    assert reasons == ["its heads are not rows of one sequence"]
    assert not attentions(result)


def test_angles_of_their_own_for_each_feature_are_no_rotary_embedding():
    proto, feed = decoder(), feed_of(halves=False)
    result, reasons = fused(proto, feed)
    assert reasons == ["its heads are not rows of one sequence"]
    assert distance(result, proto, feed) <= 1e-6


def test_heads_that_no_kernel_serves():
    proto = decoder()
    text = {"sh": [0, 0, -1, 8], "flat": [0, 8, -1, 8], "i8": [4], "end": [8]}
    for tensor in proto.graph.initializer:
        if tensor.name in text:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(text[tensor.name]), tensor.name))
    feed = feed_of()
    feed["c"], feed["s"] = feed["c"][..., 4:12], feed["s"][..., 4:12]
    for value in proto.graph.input:
        if value.name in ("c", "s"):
            value.type.tensor_type.shape.dim[2].dim_value = 8
    feed["c"][..., 4:], feed["s"][..., 4:] = feed["c"][..., :4], feed["s"][..., :4]
    result, reasons = fused(proto, feed)
    assert reasons == ["no kernel is made for heads of 8 features"]
    assert distance(result, proto, feed) <= 1e-6


@pytest.mark.parametrize("opset", [11, 12])
def test_old_opsets(opset):
    proto, feed = decoder(), feed_of()
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.output[0] not in ("dims", "length", "range", "rows", "seen")]
    for node in nodes:
        if node.op_type == "Unsqueeze":
            node.attribute.append(onnx.helper.make_attribute("axes", constants[node.input.pop()].tolist()))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.opset_import[0].version = opset
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", measure=False)
    assert len(attentions(result.model)) == 1
    assert distance(result.model, proto, feed_of(2, 5)) <= TOLERANCE


@pytest.mark.parametrize("portable", [False, True])
def test_portable_models_have_no_deft_attention(portable):
    options = {"precision": "16-bit", "density": 1, "portable": portable}
    result = deftonnx.optimize(decoder("both"), calib_data=feed_of(), measure=False, **options)
    assert any(node.domain == "ai.deftonnx" for node in result.model.graph.node) != portable
    assert any("--portable" in left.reason for left in result.report.left_in_float32) == portable


@pytest.mark.parametrize("granularity", ["block:16", "head", "channel"])
def test_eliminated_features(granularity):
    name = DECODERS[0]
    proto, feed = exported(name), feeds(name)
    options = {"preset": "dense16", "density": 0.5, "granularity": granularity, "criterion": "magnitude"}
    result = deftonnx.optimize(proto, calib_data=feed, measure=False, **options)
    assert len(attentions(result.model)) == 2
    assert any(row.granularity for row in result.report.layers)
    feed = feeds(name, batch=2, length=6, seed=3)
    assert np.isfinite(outputs(result.model, feed)[0]).all()


def changed(*replacements, **values):
    """The decoder without a mask where its text has other parts; `values` of new constants."""
    text = DECODER.format(
        mask=MASKS["causal"][0], rotated="qr = Concat <axis=-1> (qn, qa)", angles="cc = Identity (c) ss = Identity (s)"
    )
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    numbers = {name: np.array(value) for name, value in NUMBERS.items()}
    return model(text, **numbers, **{name: np.array(value) for name, value in values.items()})


def partly(part, turned):
    """Only the first half of the features of `part`, which are the tensor `turned`, are turned."""
    return [
        (
            f"{part}a = Slice ({turned}, i0, i8, last, i1)",
            f"{part}t = Slice ({turned}, i0, i8, last, i1) {part}a = Slice ({part}t, i0, i4, last, i1)",
        ),
        (
            f"{part}b = Slice ({turned}, i8, end, last, i1)",
            f"{part}o = Slice ({turned}, i8, end, last, i1) {part}b = Slice ({part}t, i4, i8, last, i1)",
        ),
        (f"{part}c = Mul ({turned}, cosines)", f"{part}c = Mul ({part}t, cosines)"),
    ]


PARTLY = [
    *partly("q", "q2"),
    *partly("k", "k2"),
    ("q = Add (qc, qs)", "qd = Add (qc, qs) q = Concat <axis=-1> (qd, qo)"),
    ("k3 = Add (ks, kc)", "kd = Add (ks, kc) k3 = Concat <axis=-1> (kd, ko)"),
    ("float[N,S,16] c, float[N,S,16] s", "float[N,S,8] c, float[N,S,8] s"),
    ("int64[1] i8", "int64[1] i4, int64[1] i8"),
]


def half_turned(feed):
    """`feed` with angles for the first half of the features."""
    for name in ("c", "s"):
        feed[name] = np.concatenate([feed[name][..., :4]] * 2, axis=-1)
    return feed


def check_fused(proto, feeds, num_kv_heads=2):
    result = deftonnx.optimize(proto, calib_data=feeds[0], preset="dense16", measure=False)
    assert [x["num_kv_heads"] for x, _ in attentions(result.model)] == [num_kv_heads]
    for feed in feeds:
        assert distance(result.model, proto, feed) <= TOLERANCE
    return result.model


def test_rotary_embeddings_of_some_features():
    check_fused(changed(*PARTLY, i4=[4]), [half_turned(feed_of()), half_turned(feed_of(2, 5))])


def test_some_features_in_another_order_are_none():
    wrong = ("k3 = Add (ks, kc)", "kd = Add (ks, kc) k3 = Concat <axis=-1> (ko, kd)")
    proto = changed(*(wrong if old == wrong[0] else (old, new) for old, new in PARTLY), i4=[4])
    feed = half_turned(feed_of())
    result, reasons = fused(proto, feed)
    assert reasons == ["its heads are not rows of one sequence"]
    assert distance(result, proto, feed) <= 1e-6


def test_one_key_for_all_queries():
    one = [
        ("float[24,32] wk, float[24,32] wv", "float[24,16] wk, float[24,16] wv"),
        ("k4 = Unsqueeze (k3, i2) v4 = Unsqueeze (v2, i2) k5 = Expand (k4, shared) v5 = Expand (v4, shared)", ""),
        ("k6 = Reshape (k5, flat) v = Reshape (v5, flat)", "k6 = Identity (k3) v = Identity (v2)"),
    ]
    check_fused(changed(*one), [feed_of(), feed_of(2, 5)], num_kv_heads=1)


def norm(part):
    """x / √(mean(x²) + epsilon) · scale of each head of `part`."""
    x = f"{part}x"
    steps = [
        f"{part}p = Mul ({x}, {x}) {part}m = ReduceMean <axes=[-1]> ({part}p) {part}e = Add ({part}m, small)",
        f"{part}w = Sqrt ({part}e) {part}y = Div ({x}, {part}w) {part}1 = Mul ({part}y, g{part})",
    ]
    return f"{part}1 = Reshape ({part}0, sh)", f"{x} = Reshape ({part}0, sh) {' '.join(steps)}"


def test_norms_of_queries_and_keys():
    scales = {f"g{part}": RNG.uniform(0.5, 1.5, 16).astype(np.float32) for part in "qk"}
    given = ("float one", "float[16] gq, float[16] gk, float small, float one")
    proto = changed(norm("q"), norm("k"), given, small=1e-6, **scales)
    found = ops(check_fused(proto, [feed_of(), feed_of(2, 5)]))
    assert found.count("SkipSimplifiedLayerNormalization") == 2
    assert {"Sqrt", "ReduceMean"}.isdisjoint(found)


def test_heads_of_two_sizes_that_turn_alike():
    """By the same cosines and sines: a table is as wide as a head."""

    def turned(a, y):
        return f"""{y}t = Slice ({a}, i0, i8, last, i1) {y}o = Slice ({a}, i8, end, last, i1) {y}a = Slice ({y}t, i0, i4, last, i1)
            {y}b = Slice ({y}t, i4, i8, last, i1) {y}n = Neg ({y}b) {y}r = Concat <axis=-1> ({y}n, {y}a)
            {y}c = Mul ({y}t, cosines) {y}s = Mul ({y}r, sines) {y}d = Add ({y}c, {y}s) {y} = Concat <axis=-1> ({y}d, {y}o)"""

    def layer(x, i):
        made = [f"{part}0{i} = MatMul ({x}, w{part}{i}) {part}1{i} = Reshape ({part}0{i}, sh{i})" for part in "qkv"]
        made += [f"{part}2{i} = Transpose <perm=[0,2,1,3]> ({part}1{i})" for part in "qkv"]
        return f"""{" ".join(made)} {turned(f"q2{i}", f"q{i}")} {turned(f"k2{i}", f"k{i}")}
            kt{i} = Transpose <perm=[0,1,3,2]> (k{i}) d{i} = MatMul (q{i}, kt{i}) e{i} = Mul (d{i}, half)
            p{i} = Softmax <axis=-1> (e{i}) z{i} = MatMul (p{i}, v2{i}) zt{i} = Transpose <perm=[0,2,1,3]> (z{i})
            zz{i} = Reshape (zt{i}, out) y{i} = MatMul (zz{i}, wo{i})"""

    weights = ", ".join(f"float[24,64] w{part}{i}" for i in "AB" for part in "qkv")
    proto = model(
        f"""g (float[N,S,24] x, float[N,S,8] c, float[N,S,8] s) => (float[N,S,24] y) <{weights}, float[64,24] woA,
        float[64,24] woB, float half, int64[4] shA, int64[4] shB, int64[3] out, int64[1] i0, int64[1] i4, int64[1] i8,
        int64[1] end, int64[1] last, int64[1] i1> {{ cosines = Unsqueeze (c, i1) sines = Unsqueeze (s, i1)
        {layer("x", "A")} {layer("yA", "B")} y = Identity (yB) }}""",
        half=np.array(0.25),
        out=np.array([0, 0, -1]),
        end=np.array([1000]),
        last=np.array([3]),
        **{f"sh{i}": np.array([0, 0, -1, size]) for i, size in (("A", 16), ("B", 32))},
        **{f"i{i}": np.array([i]) for i in (0, 1, 4, 8)},
    )

    def feed(batch, length):
        angles = np.tile(RNG.uniform(0, 6, (batch, length, 4)), 2).astype(np.float32)
        x = RNG.standard_normal((batch, length, 24)).astype(np.float32)
        return {"x": x, "c": np.cos(angles), "s": np.sin(angles)}

    result = deftonnx.optimize(proto, calib_data=feed(4, 7), preset="dense16", measure=False)
    assert len(attentions(result.model)) == 2
    assert distance(result.model, proto, feed(2, 5)) <= TOLERANCE


def test_two_norms_of_one_tensor():
    """As of queries and keys, with weights of their own."""

    def norm(y):
        return f"""{y}p = Mul (a, a) {y}m = ReduceMean <axes=[-1]> ({y}p) {y}e = Add ({y}m, small) {y}w = Sqrt ({y}e)
            {y}q = Div (a, {y}w) {y} = Mul ({y}q, g{y})"""

    proto = model(
        f"""g (float[N,S,24] x) => (float[N,S,4,16] y) <float[24,64] w, float[16] gk, float[16] gv, float small,
        int64[4] sh, float[16,16] u1, float[16,16] u2> {{ b = MatMul (x, w) a = Reshape (b, sh) {norm("k")} {norm("v")}
        k2 = MatMul (k, u1) v2 = MatMul (v, u2) y = Add (k2, v2) }}""",
        small=np.array(1e-6),
        sh=np.array([0, 0, 4, 16]),
    )
    data = {"x": RNG.standard_normal((4, 7, 24)).astype(np.float32)}
    result = deftonnx.optimize(proto, calib_data=data, preset="dense16", measure=False)
    assert ops(result.model).count("SkipSimplifiedLayerNormalization") == 2
    other = {"x": RNG.standard_normal((2, 5, 24)).astype(np.float32)}
    assert distance(result.model, proto, other) <= TOLERANCE
