"""A Conv or KeptConv as a DeftConv between transposes computes the same in stock ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from models import assert_same, feed_for, mask, model, prepare, reduce, run
from onnx import TensorProto

from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.normalise import import_model
from deftonnx.rewrite.packed_conv import End, channels_first, channels_last, deft_conv, refuse

CASES = {
    "1x1": ("N,8,5,6", "5,8,1,1", ""),
    "padded": ("N,16,6,5", "5,16,3,3", "<pads = [1,0,2,1], strides = [2,1]>"),
    "dilated": ("N,48,6,6", "3,48,2,3", "<dilations = [2,1]>"),
    "same_upper": ("N,16,7,6", "4,16,2,3", '<auto_pad = "SAME_UPPER", strides = [2,2]>'),
    "same_lower": ("N,16,7,6", "4,16,2,2", '<auto_pad = "SAME_LOWER">'),
    "valid": ("N,16,7,6", "4,16,2,2", '<auto_pad = "VALID">'),
    "grouped": ("N,16,5,5", "6,8,3,3", "<group = 2, pads = [0,1,2,0]>"),
    "depthwise": ("N,8,5,5", "16,1,3,3", "<group = 8>"),
    "one_dimension": ("N,16,9", "4,16,3", "<strides = [2]>"),
}


def conv(x: str, w: str, attributes: str, bias: bool) -> onnx.ModelProto:
    axes = ",".join("abcde"[: x.count(",") + 1])
    more, operands = (f", float[{w.split(',')[0]}] b", "x, w, b") if bias else ("", "x, w")
    return model(
        f"graph (float[{x}] x) => (float[{axes}] y) <float[{w}] w{more}>{{ [c] y = Conv {attributes} ({operands}) }}"
    )


def packed(proto: onnx.ModelProto, format_name: str, end: End | None = None) -> onnx.ModelProto:
    """`proto`, a model of one convolution, with a DeftConv between transposes instead."""
    graph = import_model(proto)
    (node,) = graph.nodes
    x, y = graph.inputs[0], graph.outputs[0]
    axes = len(x.shape) - 2
    image = list(x.shape[2:])
    assert refuse(node, graph.opset, image) is None
    first, last = gs.Variable("x_last", dtype=np.float32), gs.Variable("y_last", dtype=np.float32)
    node.outputs.clear()
    graph.nodes.clear()
    graph.nodes.extend(
        [
            gs.Node("Transpose", "in", {"perm": channels_last(axes)}, [x], [first]),
            deft_conv(node, format_name, first, last, image=image, end=end),
            gs.Node("Transpose", "out", {"perm": channels_first(axes)}, [last], [y]),
        ]
    )
    graph.cleanup()
    return finish(graph, proto, {}).whole()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_conv(name: str, bias: bool) -> None:
    proto = conv(*CASES[name], bias)
    small = packed(proto, "half")
    onnx.checker.check_model(small)
    assert [f.name for f in small.functions] == ["DeftConv"]
    assert_same(run(small, feed_for(proto)), run(proto, feed_for(proto)), 2e-3)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(("name", "width"), [("padded", 8), ("dilated", 16), ("grouped", 8), ("one_dimension", 8)])
def test_kept_conv(name: str, width: int, uneven: bool) -> None:
    proto = conv(*CASES[name], True)
    graph, (layer,) = prepare(proto)
    groups, taps, channels = layer.kept.shape
    kept = np.arange(groups * taps * channels // width).reshape(groups, -1) % 5 > 1
    kept[-1, : 2 * uneven] = False
    mask(layer, np.repeat(kept, width, axis=1).reshape(layer.kept.shape))
    eliminated = reduce(graph, [layer], proto)
    assert eliminated.graph.node[0].op_type == "KeptConv"
    small = packed(eliminated, "deft16")
    node = next(n for n in small.graph.node if n.op_type == "DeftConv")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["block"] == width
    assert attributes["K"] == width * kept.sum(1).max()
    assert_same(run(small, feed_for(proto)), run(eliminated, feed_for(proto)), 1e-2)


def test_the_end_is_fused() -> None:
    proto = conv(*CASES["1x1"], True)
    expected = np.clip(run(proto, feed_for(proto))[0], -0.1, 0.2)
    got = run(packed(proto, "half", End("clip", -0.1, 0.2)), feed_for(proto))[0]
    np.testing.assert_allclose(got, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("case", "opset", "image", "reason"),
    [
        (("N,4,3,3,3", "2,4,2,2,2", ""), 17, None, "its image has 3 axes"),
        (CASES["1x1"], 12, None, "need opset 13"),
        (CASES["same_upper"], 17, ["h", "w"], "depends on the size"),
        (CASES["same_lower"], 17, None, None),
    ],
)
def test_refusals(case: tuple[str, str, str], opset: int, image: list[str] | None, reason: str | None) -> None:
    graph = import_model(conv(*case, False))
    found = refuse(graph.nodes[0], opset, image)
    assert found == reason if reason is None else reason in str(found)


def test_the_output_type_is_the_one_asked_for() -> None:
    graph = import_model(conv(*CASES["1x1"], True))
    tensors = [gs.Variable(name, dtype=np.float16) for name in "xy"]
    node = deft_conv(graph.nodes[0], "deft8:4", *tensors, output_type=TensorProto.FLOAT16)
    assert node.attrs["output_type"] == TensorProto.FLOAT16
    assert graph.nodes[0].op == "Conv"
