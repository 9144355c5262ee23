"""Layer normalisation in the forms that exporters write becomes one operator, and other things do not."""

import numpy as np
import onnx
import pytest
from exported import exported, feeds
from models import feed_for, model
from models import run as outputs
from onnx import helper

import deftonnx
from deftonnx.precision import TOLERANCE
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.layer_norm import fuse_layer_norms
from deftonnx.rewrite.normalise import import_model, normalise

MEAN = "m = ReduceMean <axes=[-1]> (x) "
TAIL = "v = ReduceMean <axes=[-1]> (s) w = Add (v, eps) r = Sqrt (w) "
FORMS = {
    "power": MEAN + "d = Sub (x, m) s = Pow (d, two) " + TAIL + "n = Div (d, r) a = Mul (n, g) y = Add (a, b)",
    "two differences": MEAN
    + "c = Sub (x, m) d = Sub (x, m) s = Pow (c, two) "
    + TAIL
    + "n = Div (d, r) a = Mul (n, g) y = Add (a, b)",
    "product": MEAN + "d = Sub (x, m) s = Mul (d, d) " + TAIL + "n = Div (d, r) a = Mul (g, n) y = Add (b, a)",
    "reciprocal": MEAN
    + "d = Sub (x, m) s = Mul (d, d) "
    + TAIL
    + "i = Reciprocal (r) n = Mul (i, d) a = Mul (n, g) y = Add (a, b)",
    "no bias": MEAN + "d = Sub (x, m) s = Pow (d, two) " + TAIL + "n = Div (d, r) y = Mul (n, g)",
    "no scale": MEAN + "d = Sub (x, m) s = Pow (d, two) " + TAIL + "n = Div (d, r) y = Add (n, b)",
    "neither": MEAN + "d = Sub (x, m) s = Pow (d, two) " + TAIL + "y = Div (d, r)",
}
OTHERS = {
    "another axis": FORMS["power"].replace("axes=[-1]", "axes=[1]"),
    "no dimension kept": MEAN + "d = Sub (x, m) s = Pow (d, two) v0 = ReduceMean <axes=[-1], keepdims=0> (s)"
    "v = Unsqueeze (v0, last) w = Add (v, eps) r = Sqrt (w) y = Div (d, r)",
    "a cube": FORMS["neither"].replace("(d, two)", "(d, three)"),
    "another tensor": FORMS["neither"].replace("d = Sub (x, m)", "u = Abs (x) d = Sub (u, m)"),
    "no root": FORMS["neither"].replace("r = Sqrt (w)", "r = Abs (w)"),
}


def written_out(text, opset=13):
    return model(
        "g (float[N,5,16] x) => (float[N,5,16] y) <float[16] g, float[16] b, float eps, float two, float three,"
        f"int64[1] last> {{ {text} }}",
        opset=opset,
        eps=np.array(1e-12),
        two=np.array(2),
        three=np.array(3),
        last=np.array([-1]),
    )


def fused(proto):
    graph = import_model(proto)
    normalise(graph)
    fuse_layer_norms(graph)
    return finish(graph, proto, {}).whole()


def ops(proto):
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form, opset):
    proto = written_out(FORMS[form], opset)
    result = fused(proto)
    assert ops(result) == ["LayerNormalization"]
    assert result.opset_import[0].version == opset
    onnx.checker.check_model(result)
    feed = feed_for(proto, N=3)
    np.testing.assert_allclose(outputs(result, feed)[0], outputs(proto, feed)[0], rtol=1e-4, atol=1e-5)
    assert ops(fused(result)) == ["LayerNormalization"]


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_none(form):
    proto = written_out(OTHERS[form])
    result = fused(proto)
    assert "LayerNormalization" not in ops(result)
    feed = feed_for(proto, N=3)
    np.testing.assert_array_equal(outputs(result, feed)[0], outputs(proto, feed)[0])


@pytest.mark.parametrize("what", ["n", "s"])
def test_values_inside_that_are_read_stay(what):
    proto = written_out(FORMS["power"])
    proto.graph.output.append(helper.make_tensor_value_info(what, 1, ["N", 5, 16]))
    result = fused(proto)
    feed = feed_for(proto, N=3)
    for a, b in zip(outputs(result, feed), outputs(proto, feed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timm_vit_script", "torchvision_vit_script"])
def test_whole_models_of_an_older_opset(name):
    newer, feed = exported(name), feeds(name)
    proto = older(newer)
    assert distance(proto, newer, feed) <= 1e-5
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", measure=False)
    found = ops(result.model)
    assert found.count("SkipLayerNormalization") == 4
    assert sum(op.startswith("DeftAttention") for op in found) == 2
    assert {"ReduceMean", "Sqrt", "Pow"}.isdisjoint(found)
    assert result.model.opset_import[0].version == 16
    for other in (feed, feeds(name, batch=2, length=6, seed=3)):
        assert distance(result.model, proto, other) <= TOLERANCE
    again = deftonnx.optimize(result.model, calib_data=feed, preset="dense16", measure=False)
    assert distance(again.model, proto, feed) <= TOLERANCE


def distance(proto, like, feed):
    pairs = zip(outputs(proto, feed), outputs(like, feed), strict=True)
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)


def older(proto):
    """The model with opset 16, its layer normalisations written out."""
    proto = type(proto).FromString(proto.SerializeToString())
    nodes = []
    for node in proto.graph.node:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        x, g, b = node.input
        epsilon = next(a.f for a in node.attribute if a.name == "epsilon")
        p = node.output[0]
        for name, value in (("eps", epsilon), ("two", 2.0)):
            proto.graph.initializer.append(helper.make_tensor(f"{p}_{name}", 1, [], [value]))
        lines = (
            ("ReduceMean", [x], "m"),
            ("Sub", [x, f"{p}_m"], "d"),
            ("Pow", [f"{p}_d", f"{p}_two"], "s"),
            ("ReduceMean", [f"{p}_s"], "v"),
            ("Add", [f"{p}_v", f"{p}_eps"], "w"),
            ("Sqrt", [f"{p}_w"], "r"),
            ("Div", [f"{p}_d", f"{p}_r"], "n"),
            ("Mul", [f"{p}_n", g], "a"),
        )
        for op, inputs, output in lines:
            attributes = {"axes": [-1]} if op == "ReduceMean" else {}
            nodes.append(helper.make_node(op, inputs, [f"{p}_{output}"], **attributes))
        nodes.append(helper.make_node("Add", [f"{p}_a", b], [p]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.opset_import[0].version = 16
    proto.ir_version = 8
    return proto
