"""In what units features go, by the times of the layer and of the layers before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import model
from onnx import TensorProto

import deftonnx
from deftonnx import runtime
from deftonnx.cost import units
from deftonnx.cost.units import Candidates, Part
from deftonnx.cost.work import DEFT, Convolution, Form, Product
from deftonnx.formats.conv_function import Window
from deftonnx.runtime.manifest import read_manifest

PACKED = Form(DEFT, TensorProto.FLOAT16, "half")
LAYER: Part = (Product(1, 64, 64, False), PACKED)
MAKER: Part = (Product(1, 32, 64, True), PACKED)
WALKED: dict[str, Part] = {f"block:{w}": (LAYER[0], Form(DEFT, 10, "half", 0.5, w)) for w in (16, 32, 64)}
FEWER = [units.with_fewer_inputs(LAYER, 0.5), units.with_fewer_outputs(MAKER, 0.5)]


def picked(walked: list[float], whole: list[float] | None, dense: float = 10, maker: float = 10) -> units.Pick | None:
    """What is picked where the forms take so long; NaN: one that does not run."""
    times = {LAYER: dense, MAKER: maker, **dict(zip(WALKED.values(), walked, strict=True))}
    times |= dict(zip(FEWER, whole or [], strict=False))
    candidates = Candidates([LAYER, MAKER], WALKED, None if whole is None else ("channel", FEWER))
    return units.pick(candidates, lambda part: None if np.isnan(times[part]) else [times[part]])


@pytest.mark.parametrize(
    ("walked", "name"),
    [([6, 6, 6], "block:16"), ([6.2, 6, 6], "block:16"), ([7, 6, 6], "block:32"), ([7, np.nan, 6], "block:64")],
)
def test_the_finest_that_is_almost_as_fast(walked: list[float], name: str) -> None:
    pick = picked(walked, None)
    assert pick is not None
    assert (pick.name, pick.whole) == (name, False)
    assert pick.dense == [10]


@pytest.mark.parametrize(
    ("walked", "whole", "name"),
    [
        ([6, 6, 6], [6, 9.5], "block:16"),  # 15.5 instead of 16: not worth it
        ([6, 6, 6], [6, 9], "channel"),
        ([12, 12, 12], [10, 9], "channel"),  # walking is slower than all features
        ([np.nan] * 3, [10, 10], "channel"),  # whether that pays is not asked here
        ([6, 6, 6], [np.nan, 1], "block:16"),
    ],
)
def test_whole_channels_where_they_are_faster_yet(walked: list[float], whole: list[float], name: str) -> None:
    pick = picked(walked, whole)
    assert pick is not None
    assert pick.name == name
    if name == "channel":
        assert pick.dense == [20]
        assert pick.seconds == [sum(whole)]


def test_nothing_is_known() -> None:
    assert picked([1, 1, 1], [1, 1], dense=np.nan) is None
    assert picked([np.nan] * 3, None) is None


def test_groups_stay_equal() -> None:
    conv: Part = (Convolution((8, 8), 48, 96, Window.of((3, 3), group=3), False), PACKED)
    assert units.with_fewer_inputs(conv, 0.3)[0].channels == 15
    assert units.with_fewer_outputs(conv, 0.3)[0].N == 30


CONVOLUTIONS = """g (float[N,64,14,14] x) => (float[N,10] y) <float[256,64,3,3] k, float[256,256,3,3] l, float[256,256,3,3] m,
    float[12544,512] u, float[512,10] v> { [a] a = Conv <pads=[1,1,1,1]> (x, k) r = Relu (a)
    [b] b = Conv <pads=[1,1,1,1]> (r, l) s = Relu (b) [c] c = Conv <pads=[1,1,1,1], strides=[2,2]> (s, m) t = Relu (c)
    f = Flatten (t) [d] d = MatMul (f, u) w = Relu (d) [e] y = MatMul (w, v) }"""
ATTENTION = """g (float[N,64,256] x) => (float[N,64,256] y) <float[256,256] i, float[256,256] q, float[256,256] k,
    float[256,256] v, float[256,256] o, float[256,256] u> { [i] i0 = MatMul (x, i) s = Softmax (i0)
    [q] q0 = MatMul (s, q) [k] k0 = MatMul (s, k) [v] v0 = MatMul (s, v)
    a = com.microsoft.MultiHeadAttention <num_heads=4, scale=0.125> (q0, k0, v0)
    [o] b = MatMul (a, o) [u] y = MatMul (b, u) }"""


def granularities(
    text: str, shape: tuple[int, ...], granularity: str, keep_last: bool = True
) -> tuple[dict[str, str | None], set[str]]:
    """Of every layer, by the model of an H200; and the operators of the result."""
    feed = {"x": np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)}
    options = {"density": 0.5, "criterion": "magnitude", "refit": "none", "gpu": "h200", "batches": (256,)}
    result = deftonnx.optimize(
        model(text),
        calib_data=feed,
        preset="dense16",
        decide_by="model",
        measure=False,
        granularity=granularity,
        keep_last=keep_last,
        **options,
    )
    assert deftonnx.optimize(model(text), calib_data=feed, measure=False, plan=result.plan).model == result.model
    operators = {node.op_type for node in result.model.graph.node}
    return {layer.name: layer.granularity for layer in result.plan.layers}, operators


def test_convolutions_lose_whole_channels_if_asked() -> None:
    auto, _ = granularities(CONVOLUTIONS, (64, 14, 14), "auto")
    assert {auto["b"], auto["c"]} <= {"block:32", "block:64"}  # as the estimates of their kernels have it
    assert auto["d"] in ("element", None)
    fastest, operators = granularities(CONVOLUTIONS, (64, 14, 14), "fastest")
    assert fastest["b"] in ("channel", "block:32", "block:64")  # its features are made by a small layer
    assert (fastest["c"], fastest["d"]) == ("channel", "channel:49")
    assert "Gather" not in operators


@pytest.fixture
def kernels() -> None:
    """Only where the library can be asked for its times: rougher estimates may find other units faster."""
    try:
        known = read_manifest(Path(runtime.get_library_path())).kernels
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if 90 not in known:
        pytest.skip("the library was built without kernels for sm_90")


@pytest.mark.usefixtures("kernels")
def test_convolutions_that_share_features_lose_the_same_channels() -> None:
    """As SqueezeNet's expand layers do: a 1×1 convolution and a 3×3 read what one layer makes."""
    text = """g (float[N,64,14,14] x) => (float[N,512,14,14] y) <float[256,64,1,1] k, float[256,256,1,1] l,
        float[256,256,1,1] m, float[256,256,3,3] n> { [a] a = Conv (x, k) r = Relu (a) [b] b = Conv (r, l) s = Relu (b)
        [c] c = Conv (s, m) [d] d = Conv <pads=[1,1,1,1]> (s, n) e = Concat <axis=1> (c, d) y = Softmax <axis=1> (e) }"""
    fastest, operators = granularities(text, (64, 14, 14), "fastest", keep_last=False)
    assert fastest["c"] == fastest["d"] == "channel"
    assert "Gather" not in operators
    auto, _ = granularities(text, (64, 14, 14), "auto", keep_last=False)
    assert "channel" not in auto.values()


@pytest.mark.usefixtures("kernels")
def test_attention_loses_heads_and_products_blocks_if_asked() -> None:
    auto, _ = granularities(ATTENTION, (64, 256), "auto")
    assert set(auto.values()) <= {"element", None}
    fastest, operators = granularities(ATTENTION, (64, 256), "fastest")
    assert fastest["q"] == fastest["k"] == fastest["v"] == "block:32"
    assert fastest["o"] == "head:64"
    assert "Gather" not in operators
