"""KeptConv's function body in stock ONNX Runtime is a Conv; reorder is the paper's paired swap."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import NEWEST_OPSET, Array, assert_same, feed_for, mask, model, prepare, reduce, run
from onnx import helper, numpy_helper

import deftonnx
from deftonnx.formats import functions
from deftonnx.rewrite.eliminate import even, reorder

CASES = {
    "width_1": ("N,6,6,5", "5,6,3,3", "<pads = [1,1,1,1]>", 1),
    "width_8": ("N,16,6,5", "5,16,3,3", "<strides = [2,1]>", 8),
    "width_16": ("N,48,4,4", "3,48,2,3", "", 16),
    "width_32": ("N,64,4,4", "3,64,3,1", "<dilations = [1,2]>", 32),
    "width_64": ("N,128,3,3", "3,128,2,2", '<auto_pad = "SAME_LOWER">', 64),
    "grouped": ("N,16,5,5", "6,8,3,3", "<group = 2, pads = [0,1,2,0]>", 8),
    "one_dimension": ("N,16,9", "4,16,3", "<strides = [2]>", 8),
    "three_dimensions": ("N,8,4,3,4", "4,8,2,1,2", '<auto_pad = "SAME_UPPER">', 8),
}


def conv(x: str, w: str, attributes: str, opset: int, dtype: str = "float", bias: bool = False) -> onnx.ModelProto:
    """A model of one Conv."""
    y = ",".join("abcde"[: x.count(",") + 1])
    more = f", {dtype}[{w.split(',')[0]}] b" if bias else ""
    operands = "x, w, b" if bias else "x, w"
    return model(
        f"graph ({dtype}[{x}] x) => ({dtype}[{y}] y) <{dtype}[{w}] w{more}>"
        f"{{ [c] y = Conv {attributes} ({operands}) }}",
        opset=opset,
    )


def kept_conv(proto: onnx.ModelProto, width: int, seed: int = 0) -> tuple[onnx.ModelProto, Array]:
    """`proto` with half of its layer's blocks eliminated, and the dense masked weight tensor."""
    graph, (layer,) = prepare(proto)
    rng = np.random.default_rng(seed)
    groups, taps, channels = layer.kept.shape
    kept = rng.permuted(np.arange(taps * channels // width)[None].repeat(groups, 0) % 2 == 0, axis=1)
    mask(layer, np.repeat(kept, width, axis=1).reshape(layer.kept.shape))
    dense = layer.node.inputs[1].values.copy()
    return reduce(graph, [layer], proto), dense


def decoded(proto: onnx.ModelProto) -> Array:
    """functions.conv_weight of the model's KeptConv, shaped as a Conv's weight."""
    node = next(n for n in proto.graph.node if n.op_type == "KeptConv")
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    dense = functions.conv_weight(constants[node.input[1]], constants[node.input[3]], attributes["dense_shape"])
    return dense.reshape(attributes["weight_shape"])


@pytest.mark.parametrize("opset", range(functions.OLDEST_OPSET, NEWEST_OPSET + 1))
@pytest.mark.parametrize("name", ["width_8", "grouped"])
def test_every_opset(name: str, opset: int) -> None:
    *shape, width = CASES[name]
    compare(conv(*shape, opset=opset), width)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_width_and_rank(name: str, bias: bool) -> None:
    *shape, width = CASES[name]
    compare(conv(*shape, opset=17, bias=bias), width)


def test_float16() -> None:
    *shape, width = CASES["width_8"]
    compare(conv(*shape, opset=17, dtype="float16", bias=True), width, 2e-3)


def compare(proto: onnx.ModelProto, width: int, tolerance: float = 1e-5) -> None:
    """The KeptConv form computes the Conv with the decoded weight, which is the masked one."""
    small, dense = kept_conv(proto, width)
    weight = next(t for t in small.graph.initializer if t.name.startswith("c/weight"))
    assert weight.dims[1] == width
    onnx.checker.check_model(small, full_check=True)
    np.testing.assert_array_equal(decoded(small), dense)
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    plain.graph.initializer[0].CopyFrom(numpy_helper.from_array(dense, "w"))
    feed = feed_for(proto)
    assert_same(run(small, feed), run(plain, feed), tolerance)


def test_the_original_model_is_left_as_it_was() -> None:
    proto = conv("N,16,5,5", "4,16,3,3", "", 17)
    before = proto.SerializeToString(deterministic=True)
    small, _ = kept_conv(proto, 8)
    assert proto.SerializeToString(deterministic=True) == before
    assert {o.domain: o.version for o in small.opset_import}[functions.DOMAIN] == functions.VERSION


def test_one_kept_block_and_none() -> None:
    proto = conv("N,16,5,5", "4,16,3,3", "", 17, bias=True)
    for count in (1, 0):
        graph, (layer,) = prepare(proto)
        kept = np.zeros((1, 9, 16), dtype=bool)
        kept[0, 4, :8] = count
        mask(layer, kept)
        small = reduce(graph, [layer], proto)
        y = run(small, feed_for(proto))[0]
        bias = numpy_helper.to_array(proto.graph.initializer[1])
        assert (np.abs(y - bias[:, None, None]).max() > 1e-3) == bool(count)


def test_weight_holds_only_what_is_kept() -> None:
    proto = conv("N,16,5,5", "4,16,3,3", "", 17)
    small, dense = kept_conv(proto, 8)
    weight = next(t for t in small.graph.initializer if t.name.startswith("c/weight"))
    assert np.prod(weight.dims) == 9 * 8 * 4 == (dense != 0).sum()


def paired_swaps(rows: list[int], retained: set[int]) -> list[int]:
    """§4.1.1 word for word: pair misplaced retained with misplaced discarded synapses, and swap each pair."""
    border = len(retained)
    wrong_left = [place for place in range(border) if rows[place] not in retained]
    wrong_right = [place for place in range(border, len(rows)) if rows[place] in retained]
    assert len(wrong_left) == len(wrong_right)
    for a, b in zip(wrong_left, wrong_right, strict=True):
        rows[a], rows[b] = rows[b], rows[a]
    return rows


@pytest.mark.parametrize("seed", range(40))
def test_reorder_is_the_papers_paired_swap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    K = int(rng.integers(1, 30))
    kept = np.sort(rng.choice(K, int(rng.integers(0, K + 1)), replace=False))
    order = reorder(kept, K)
    assert order.tolist() == paired_swaps(list(range(K)), set(kept.tolist()))
    assert sorted(order[: len(kept)]) == kept.tolist()


def test_reorder_leaves_a_prefix_alone() -> None:
    assert reorder(np.arange(5), 9).tolist() == list(range(9))


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([[1, 0, 1], [0, 1, 1]], [[1, 0, 1], [0, 1, 1]]),
        ([[1, 0, 1], [0, 1, 0]], [[1, 0, 1], [1, 1, 0]]),
        ([[0, 0, 0], [0, 0, 0]], [[1, 0, 0], [1, 0, 0]]),
    ],
)
def test_groups_are_made_even(kept: list[list[int]], expected: list[list[int]]) -> None:
    assert even(np.array(kept, dtype=bool)).astype(int).tolist() == expected


@pytest.mark.parametrize("granularity", ["auto", "fastest"])
def test_images_that_no_kernel_walks_lose_whole_channels(granularity):
    proto = model(
        """g (float[N,4,5,6,6] x) => (float[N,16,5,6,6] y)
        <float[64,4,3,3,3] u, float[64,64,3,3,3] v, float[16,64,3,3,3] w> {
        a = Conv <pads=[1,1,1,1,1,1]> (x, u) b = Relu (a) c = Conv <pads=[1,1,1,1,1,1]> (b, v) d = Relu (c)
        y = Conv <pads=[1,1,1,1,1,1]> (d, w) }"""
    )
    options = {"density": 0.5, "granularity": granularity, "criterion": "magnitude", "refit": "none"}
    result = deftonnx.optimize(proto, preset="dense16", calib_data="random", calib_samples=2, measure=False, **options)
    assert not [node for node in result.model.graph.node if node.op_type.startswith("KeptConv")]
