"""Attention of many forms becomes MultiHeadAttention, and the model computes what it did."""

import numpy as np
import pytest
from exported import NAMES, exported, feeds
from fused_model import distance, fused
from models import model, packed_products
from models import run as outputs

import deftonnx
from deftonnx.precision import TOLERANCE
from deftonnx.rewrite.attention import fuse
from deftonnx.rewrite.attention.core import leads_to_product
from deftonnx.rewrite.attention.masks_together import add_masks_together
from deftonnx.rewrite.normalise import import_model

RNG = np.random.default_rng(7)


def ops(proto):
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("name", NAMES)
def test_exported_models(name):
    proto, feed = exported(name), feeds(name)
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", measure=False)
    assert not result.report.left_in_float32
    found = ops(result.model)
    assert sum(op.startswith("DeftAttention") for op in found) == 2
    assert found.count("SkipLayerNormalization") == 4
    assert packed_products(result.model) >= 8
    assert {"Softmax", "MatMul", "Gelu", "Erf"}.isdisjoint(found)
    for other in (feed, feeds(name, batch=2, length=6, seed=3), feeds(name, batch=1, length=11, seed=4)):
        assert distance(result.model, proto, other) <= TOLERANCE


@pytest.mark.parametrize("name", ["bert_sdpa_dynamo", "torchvision_vit_script"])
def test_plans_presets_and_types(name):
    proto, feed = exported(name), feeds(name)
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", measure=False)
    replayed = deftonnx.optimize(proto, calib_data=feed, plan=result.plan, measure=False)
    assert ops(replayed.model) == ops(result.model)
    again = deftonnx.optimize(result.model, calib_data=feed, preset="dense16", measure=False)
    assert distance(again.model, proto, feed) <= TOLERANCE
    reduced = deftonnx.optimize(proto, calib_data=feed, preset="balanced", measure=False)
    assert sum(op.startswith("DeftAttention") for op in ops(reduced.model)) == 2
    assert any(row.granularity for row in reduced.report.layers)
    narrow = deftonnx.optimize(proto, calib_data=feed, preset="dense16", io_types="float16", measure=False)
    halves = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in feed.items()}
    got, want = outputs(narrow.model, halves)[0], outputs(proto, feed)[0]
    assert got.dtype == np.float16
    assert np.linalg.norm(got.astype(np.float64) - want) <= 2 * TOLERANCE * np.linalg.norm(want)


@pytest.mark.parametrize("wrong", [{0}, {1}, {0, 1}])
def test_an_attention_that_differs_is_left_alone(monkeypatch, wrong):
    proto, feed = exported("bert_sdpa_dynamo"), feeds("bert_sdpa_dynamo")
    fuse_one, names = fuse._fuse, []

    def fused_wrongly(softmax, known):
        outcome = fuse_one(softmax, known)
        names.extend([softmax.name] if softmax.name not in names else [])
        if outcome is None and names.index(softmax.name) in wrong:
            attention = next(n for n in known.graph.nodes if n.op == fuse.OPERATOR and softmax.name in n.name)
            attention.attrs["scale"] *= 100
        return outcome

    monkeypatch.setattr(fuse, "_fuse", fused_wrongly)
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", measure=False)
    found = ops(result.model)
    assert found.count("Softmax") == len(wrong)
    assert sum(op.startswith("DeftAttention") for op in found) == 2 - len(wrong)
    differing = [left.name for left in result.report.left_in_float32 if "would differ" in left.reason]
    assert differing == [names[i] for i in sorted(wrong)]
    assert distance(result.model, proto, feeds("bert_sdpa_dynamo", batch=2, length=6, seed=3)) <= TOLERANCE


CORE = """g (float[N,S,12] x, float[N,1,1,S] m, float[N,1,S,S] full) => (float[N,S,12] y)
    <float[12,12] wq, float[12] bq, float[12,12] wk, float[12,12] wv, float[12,12] wo, int64[4] sh, int64[3] out,
     float c> {{
    q0 = MatMul (x, wq) q1 = Add (q0, bq) k1 = MatMul (x, wk) v1 = MatMul (x, wv)
    q2 = Reshape (q1, sh) q = Transpose <perm=[0,2,1,3]> (q2)
    k2 = Reshape (k1, sh) k = Transpose <perm=[0,2,3,1]> (k2)
    v2 = Reshape (v1, sh) v = Transpose <perm=[0,2,1,3]> (v2)
    {scores}
    [softmax] p = Softmax <axis=-1> (s) z = MatMul (p, v) z1 = Transpose <perm=[0,2,1,3]> (z) z2 = Reshape (z1, out)
    y = MatMul (z2, wo) }}"""
NUMBERS = {"sh": np.array([0, 0, 3, 4]), "out": np.array([0, 0, 12]), "c": np.array(0.6)}
SCORES = {
    "plain": "s = MatMul (q, k)",
    "scaled": "s0 = MatMul (q, k) s = Mul (s0, c)",
    "divided and masked": "s0 = MatMul (q, k) s1 = Div (s0, c) s = Add (s1, m)",
    "bias and mask": "s0 = MatMul (q, k) s1 = Add (s0, full) s = Add (s1, m)",
    "mask and bias": "s0 = MatMul (q, k) s1 = Div (s0, c) s2 = Add (full, s1) s = Add (m, s2)",
    "query scaled": "q3 = Mul (q, c) s0 = MatMul (q3, k) s = Add (full, s0)",
}


def test_masks_are_added_together_once():
    graph = import_model(model(CORE.format(scores=SCORES["bias and mask"]), **NUMBERS))
    again = graph.copy()
    for tensor in again.tensors().values():
        if tensor.inputs:
            tensor.name += "/again"
    layers = [*graph.nodes, *again.nodes]
    shared = graph.tensors()
    for node in again.nodes:
        node.inputs = [shared.get(t.name, t) for t in node.inputs]
    graph.nodes = layers
    graph.outputs += again.outputs
    assert add_masks_together(graph)
    assert len([node for node in graph.nodes if node.op == "Add" and not leads_to_product(node.inputs[0])]) == 1
    assert not add_masks_together(graph)


def core(scores):
    return model(CORE.format(scores=SCORES[scores]), **NUMBERS)


def core_feed(batch=3, length=7):
    mask = np.where(RNG.random((batch, 1, 1, length)) < 0.3, -1e9, 0).astype(np.float32)
    return {
        "x": RNG.standard_normal((batch, length, 12)).astype(np.float32),
        "m": mask,
        "full": RNG.standard_normal((batch, 1, length, length)).astype(np.float32),
    }


@pytest.mark.parametrize("scores", SCORES)
def test_scale_and_mask(scores):
    proto, feed = core(scores), core_feed()
    result, reasons = fused(proto, feed)
    assert not reasons
    assert ops(result).count("MultiHeadAttention") == 1
    assert "Transpose" not in ops(result)
    for other in (feed, core_feed(1, 4), core_feed(2, 1)):
        assert distance(result, proto, other) <= 1e-5


ONE_HEAD = """g (float[N,S,12] x) => (float[N,S,12] y)
    <float[12,8] wq, float[12,8] wk, float[12,8] wv, float[8,12] wo> {{
    q = MatMul (x, wq) k0 = MatMul (x, wk) k = Transpose <perm=[0,2,1]> (k0) v = MatMul (x, wv)
    s = MatMul (q, k) p = Softmax <axis=-1> (s) z = MatMul (p, v) {end} }}"""


@pytest.mark.parametrize("end", ["y = MatMul (z, wo)", "a = MatMul (z, wo) y = Add (a, x)"])
def test_one_head_that_is_never_split(end):
    proto = model(ONE_HEAD.format(end=end))
    feed = {"x": core_feed()["x"]}
    result, reasons = fused(proto, feed)
    assert not reasons
    assert ops(result).count("MultiHeadAttention") == 1
    assert {"Transpose", "Reshape"}.isdisjoint(ops(result))
    for other in (feed, {"x": core_feed(1, 4)["x"]}, {"x": core_feed(4, 8)["x"]}):
        assert distance(result, proto, other) <= 1e-5


HEADS_IN_THE_BATCH = """g (float[N,7,12] x) => (float[R,7,4] y)
    <float[12,12] wq, float[12,12] wk, float[12,12] wv, int64[4] sh, int64[3] joint> {
    q0 = MatMul (x, wq) q1 = Reshape (q0, sh) q2 = Transpose <perm=[0,2,1,3]> (q1) q = Reshape (q2, joint)
    k0 = MatMul (x, wk) k1 = Reshape (k0, sh) k2 = Transpose <perm=[0,2,1,3]> (k1) k3 = Reshape (k2, joint)
    v0 = MatMul (x, wv) v1 = Reshape (v0, sh) v2 = Transpose <perm=[0,2,1,3]> (v1) v = Reshape (v2, joint)
    k = Transpose <perm=[0,2,1]> (k3) s = MatMul (q, k) p = Softmax <axis=-1> (s) z = MatMul (p, v) y = Relu (z) }"""


def test_heads_that_stay_in_the_batch():
    proto = model(HEADS_IN_THE_BATCH, sh=np.array([0, 7, 3, 4]), joint=np.array([-1, 7, 4]))
    feed = {"x": core_feed()["x"]}
    result, reasons = fused(proto, feed)
    assert reasons == ["its heads have no axis of their own"]
    assert distance(result, proto, feed) <= 1e-6


REFUSED = {
    "constant keys": ("s = MatMul (q, kc)", "one of its factors is constant"),
    "mask scaled": ("s0 = MatMul (q, k) s1 = Add (s0, m) s = Mul (s1, c)", "its mask is scaled"),
    "no product": ("s0 = MatMul (q, k) s = Relu (s0)", "its scores come from Relu"),
    "heads mixed": (
        "q4 = Transpose <perm=[0,1,3,2]> (q) q5 = Reshape (q4, mixed) s = MatMul (q5, k)",
        "its heads are not columns of one projection",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    scores, reason = REFUSED[case]
    text = CORE.format(scores=scores).replace("float c>", "float c, float[1,3,4,7] kc, int64[4] mixed>")
    proto = model(
        text.replace("S,12]", "7,12]").replace("1,S]", "1,7]").replace("S,S]", "7,7]"),
        sh=np.array([0, 0, 3, 4]),
        out=np.array([0, 0, 12]),
        c=np.array(0.6),
        mixed=np.array([0, 3, 7, 4]),
    )
    result, reasons = fused(proto, core_feed())
    assert reasons == [reason]
    assert "MultiHeadAttention" not in ops(result)
    assert distance(result, proto, core_feed()) <= 1e-6


def test_outputs_inside_attention_stay():
    proto = core("scaled")
    proto.graph.output.append(type(proto.graph.output[0])(name="p"))
    result, reasons = fused(proto, core_feed())
    assert reasons == ["an output of the graph is inside it"]
    assert "Softmax" in ops(result)


def test_cross_attention():
    proto = model(
        """g (float[N,S,8] x, float[N,T,8] c) => (float[N,S,8] y)
        <float[8,8] wq, float[8,16] wkv, int64[4] sh, int64[3] out, int64[2] halves> {
        q1 = MatMul (x, wq) kv = MatMul (c, wkv) k1, v1 = Split <axis=-1> (kv, halves)
        q2 = Reshape (q1, sh) q = Transpose <perm=[0,2,1,3]> (q2)
        k2 = Reshape (k1, sh) k = Transpose <perm=[0,2,3,1]> (k2)
        v2 = Reshape (v1, sh) v = Transpose <perm=[0,2,1,3]> (v2)
        s = MatMul (q, k) p = Softmax <axis=-1> (s) z = MatMul (p, v)
        z1 = Transpose <perm=[0,2,1,3]> (z) y = Reshape (z1, out) }""",
        sh=np.array([0, 0, 2, 4]),
        out=np.array([0, 0, 8]),
        halves=np.array([8, 8]),
    )
    feed = {"x": RNG.standard_normal((3, 5, 8)).astype(np.float32), "c": RNG.standard_normal((3, 6, 8), np.float32)}
    result, reasons = fused(proto, feed)
    assert not reasons
    assert sorted(ops(result)) == ["MatMul", "MatMul", "MatMul", "MultiHeadAttention"]
    assert distance(result, proto, feed) <= 1e-5


CROSS = """g (float[N,S,24] x, float[N,T,24] c) => (float[N,S,24] y) <float[24,64] wq, float[24,16] wk, float[24,16] wv,
    float[64,24] wo, float half, int64[4] sh, int64[3] out> { q0 = MatMul (x, wq) k0 = MatMul (c, wk) v0 = MatMul (c, wv)
    q1 = Reshape (q0, sh) k1 = Reshape (k0, sh) v1 = Reshape (v0, sh) q = Transpose <perm=[0,2,1,3]> (q1)
    k = Transpose <perm=[0,2,3,1]> (k1) v = Transpose <perm=[0,2,1,3]> (v1) d = MatMul (q, k) e = Mul (d, half)
    p = Softmax <axis=-1> (e) z = MatMul (p, v) z1 = Transpose <perm=[0,2,1,3]> (z) z2 = Reshape (z1, out)
    y = MatMul (z2, wo) }"""


@pytest.mark.parametrize("given", [None, (4, 7, 7)])
def test_lengths_that_happen_to_be_equal(given):
    """In the data, or made up: an attention across two sequences is none within one."""
    rng = np.random.default_rng(0)

    def feed(batch, length, other):
        return {n: rng.standard_normal((batch, s, 24)).astype(np.float32) for n, s in (("x", length), ("c", other))}

    proto = model(CROSS, half=np.array(0.25), sh=np.array([0, 0, -1, 16]), out=np.array([0, 0, -1]))
    data = None if given is None else feed(*given)
    result = deftonnx.optimize(proto, calib_data=data, preset="dense16", measure=False)
    for sizes in ((2, 6, 6), (2, 6, 9)):
        x = feed(*sizes)
        np.testing.assert_allclose(outputs(result.model, x)[0], outputs(proto, x)[0], atol=2e-2)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_numbers_made_of_the_batch_are_not_those_of_one_sample(batch):
    proto = model(
        """g (float[N,8,16] x) => (float[N,8,16] y) <float[16,16] w, int64 zero> {
        p = MatMul (x, w) q = Softmax (p) s = Shape (x) b = Gather (s, zero) c = Cast <to=1> (b) y = Div (q, c) }""",
        zero=np.array(0, np.int64),
    )
    result = deftonnx.optimize(proto, precision="16-bit", measure=False).model
    feed = {"x": np.random.default_rng(0).standard_normal((batch, 8, 16)).astype(np.float32)}
    assert distance(result, proto, feed) < 1e-3


WINDOWS = """g (float[N,6,6,12] x) => (float[N,6,6,12] y)
    <float[12] g, float[12] h, float[12,36] w, float[1,3,9,9] bias, float[12,12] wo, float c,
     int64[6] cut, int64[3] rows, int64[5] sh, int64[3] joint, int64[6] back, int64[4] image> {
    n = LayerNormalization (x, g, h)
    a = Reshape (n, cut) b = Transpose <perm=[0,1,3,2,4,5]> (a) r = Reshape (b, rows)
    t = MatMul (r, w) t1 = Reshape (t, sh) t2 = Transpose <perm=[2,0,3,1,4]> (t1)
    q0 = Gather <axis=0> (t2, i0) k0 = Gather <axis=0> (t2, i1) v = Gather <axis=0> (t2, i2)
    q = Mul (q0, c) k = Transpose <perm=[0,1,3,2]> (k0) s0 = MatMul (q, k) s = Add (s0, bias)
    p = Softmax <axis=-1> (s) z = MatMul (p, v) z1 = Transpose <perm=[0,2,1,3]> (z) z2 = Reshape (z1, joint)
    o = MatMul (z2, wo) o1 = Reshape (o, back) o2 = Transpose <perm=[0,1,3,2,4,5]> (o1) e = Reshape (o2, image)
    y = Add (x, e) }"""


def windows(*replacements, **values):
    """The model of windows where its text has other parts, with `values` of other constants."""
    text = WINDOWS.replace("float c,", "float c, int64 i0, int64 i1, int64 i2,")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    shapes = {"cut": [-1, 2, 3, 2, 3, 12], "rows": [-1, 9, 12], "sh": [-1, 9, 3, 3, 4], "joint": [-1, 9, 12]}
    shapes |= {"back": [-1, 2, 2, 3, 3, 12], "image": [-1, 6, 6, 12]}
    numbers = {name: np.array(value) for name, value in (shapes | {"i0": 0, "i1": 1, "i2": 2, "c": 0.5}).items()}
    return model(text, **numbers, **values)


def check_windows(proto):
    feed = {"x": RNG.standard_normal((3, 6, 6, 12)).astype(np.float32)}
    result, reasons = fused(proto, feed)
    for other in (feed, {"x": RNG.standard_normal((1, 6, 6, 12)).astype(np.float32)}):
        assert distance(result, proto, other) <= 1e-5
    return ops(result).count("MultiHeadAttention"), reasons


def test_windows_of_an_image_with_a_bias_by_position():
    assert check_windows(windows()) == (1, [])


MASKED = (
    "masked = Reshape (s, apart) hidden = Add (masked, masks) s5 = Reshape (hidden, again) p = Softmax <axis=-1> (s5)"
)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("shape", "apart", "reasons"),
    [
        ((1, 4, 1, 9, 9), [-1, 4, 3, 9, 9], []),
        ((4, 1, 9, 9), [-1, 4, 3, 9, 9], []),
        ((4, 3, 9, 9), [-1, 4, 3, 9, 9], []),
        ((2, 1, 9, 9), [-1, 2, 3, 9, 9], []),
        ((1, 1, 1, 9, 9), [-1, 4, 3, 9, 9], ["the masks of its windows are not the same for all images"]),
        ((3, 1, 9, 9), [-1, 3, 4, 9, 9], ["the masks of its windows are not the same for all images"]),
    ],
)
def test_windows_with_masks_of_their_own(shape, apart, reasons, biased):
    """As where windows are shifted: some windows hold parts of the image that are apart."""
    declared = ("float c,", f"float c, float[{','.join(map(str, shape))}] masks, int64[5] apart, int64[4] again,")
    changes = [declared, ("p = Softmax <axis=-1> (s)", MASKED)]
    changes += (
        [] if biased else [("s0 = MatMul (q, k) s = Add (s0, bias)", "s = MatMul (q, k)"), ("float[1,3,9,9] bias,", "")]
    )
    hidden = np.where(RNG.random(shape) < 0.4, -100, 0).astype(np.float32)
    proto = windows(*changes, masks=hidden, apart=np.array(apart), again=np.array([-1, 3, 9, 9]))
    assert check_windows(proto) == (int(not reasons), reasons)


def test_a_bias_for_every_window_of_every_image():
    """A batch that is fixed lets an exporter fold it so."""
    masks = np.full((1, 4, 1, 9, 9), -1, np.float32)
    apart, again = np.array([-1, 4, 3, 9, 9]), np.array([-1, 3, 9, 9])
    proto = windows(
        ("float c,", "float c, float[1,4,1,9,9] masks, int64[5] apart, int64[4] again,"),
        ("p = Softmax <axis=-1> (s)", MASKED),
        ("float[1,3,9,9] bias", "float[8,3,9,9] bias"),
        ("float[N,6,6,12] x", "float[2,6,6,12] x"),
        ("float[N,6,6,12] y", "float[2,6,6,12] y"),
        masks=masks,
        apart=apart,
        again=again,
    )
    x = {"x": np.random.default_rng(0).standard_normal((2, 6, 6, 12)).astype(np.float32)}
    result = deftonnx.optimize(proto, calib_data=x, preset="dense16", measure=False)
    np.testing.assert_allclose(outputs(result.model, x)[0], outputs(proto, x)[0], atol=2e-2)
