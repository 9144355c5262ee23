"""What a judge makes of times: which rewrites stay, which go and why, and what the report shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from models import model, packed_products
from onnx import TensorProto

import deftonnx
from deftonnx import deciding
from deftonnx.cost import gpu_clock
from deftonnx.cost.roofline import RATES, ModelClock
from deftonnx.cost.work import DEFT, STOCK, Convolution, Form, Product, Work
from deftonnx.errors import UnsupportedError, UsageError
from deftonnx.formats.conv_function import Window
from deftonnx.runtime import cuda
from deftonnx.runtime.gpus import GPUS

HALF = TensorProto.FLOAT16
NETWORK = """g (float[N,16,12,12] x) => (float[N,10] y) <float[64,16,3,3] k, float[64] kb, float[64,64,3,3] l,
    float[64,96] w, float[96,10] v> { [a] a = Conv <pads=[1,1,1,1]> (x, k, kb) r = Relu (a)
    [b] b = Conv <pads=[1,1,1,1]> (r, l) s = Relu (b) p = GlobalAveragePool (s) f = Flatten (p)
    [c] c = MatMul (f, w) t = Relu (c) [d] y = MatMul (t, v) }"""
FEED = {"x": np.random.default_rng(0).standard_normal((40, 16, 12, 12)).astype(np.float32)}


class FakeClock:
    """Gives `stock` seconds to ONNX Runtime's operators and `packed` to ours, by the type of work; eliminating makes
    the packed ones faster by the share that goes, for some widths of blocks. Counts what it is asked."""

    how = "measured"

    def __init__(self, packed: dict[type, float], slower_widths: Sequence[int] = ()) -> None:
        self.packed, self.slower_widths = packed, slower_widths
        self.asked: list[tuple[Work, tuple[Form, ...]]] = []

    def seconds(self, work: Work, forms: Sequence[Form], batches: Sequence[int]) -> dict[Form, list[float]]:
        self.asked.append((work, tuple(forms)))
        return {form: [self._time(work, form)] * len(batches) for form in forms}

    def _time(self, work: Work, form: Form) -> float:
        if form.operator == STOCK:
            return 10e-6
        slow = 3 if form.block in self.slower_widths else 1
        return self.packed[type(work)] * form.density * slow


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch):
    def run(clock: FakeClock, **options: object) -> deftonnx.Result:
        monkeypatch.setattr(cuda, "obstacle", lambda: None)
        monkeypatch.setattr(cuda, "devices", lambda: [GPUS["h200"]])
        monkeypatch.setattr(gpu_clock, "GpuClock", lambda budget: clock)
        return deftonnx.optimize(model(NETWORK), calib_data=FEED, measure=False, **options)

    return run


def operators(result: deftonnx.Result) -> dict[str, int]:
    ops = [node.op_type.split("_")[0] for node in result.model.graph.node]
    counts = {name: ops.count(name) for name in ("DeftConv", "Conv", "MatMul")}
    return {**counts, "DeftGemm": packed_products(result.model)}


def test_all_that_pays_is_kept(optimised) -> None:
    clock = FakeClock({Product: 5e-6, Convolution: 4e-6})
    result = optimised(clock, preset="dense16")
    assert operators(result) == {"DeftConv": 2, "Conv": 0, "DeftGemm": 2, "MatMul": 0}
    assert result.report.left_unpacked == []
    rows = {row.name: row for row in result.report.layers}
    assert {row.timed for row in rows.values()} == {"measured"}
    assert rows["a"].us_before == pytest.approx({1: 10, 64: 10})
    assert rows["a"].us_after == pytest.approx({1: 4, 64: 4})
    assert rows["c"].us_after == pytest.approx({1: 5, 64: 5})


@pytest.mark.parametrize(("gain", "kept"), [(1.015, False), (1.025, True)])
def test_a_rewrite_must_gain_two_per_cent(optimised, gain: float, kept: bool) -> None:
    result = optimised(FakeClock({Product: 10e-6 / gain, Convolution: 10e-6 / gain}), preset="dense16", batches=(8,))
    assert operators(result)["DeftGemm"] == (2 if kept else 0)
    assert operators(result)["DeftConv"] == (2 if kept else 0)
    reasons = {refusal.name: refusal.reason for refusal in result.report.left_unpacked}
    assert set(reasons) == (set() if kept else set("abcd"))
    if not kept:
        assert reasons["a"] == "packed it would take 9.85 instead of 10 µs at batch 8 (measured)"


def test_only_one_kind_pays(optimised) -> None:
    result = optimised(FakeClock({Product: 20e-6, Convolution: 5e-6}), preset="dense16")
    assert operators(result) == {"DeftConv": 2, "Conv": 0, "DeftGemm": 0, "MatMul": 2}
    assert {refusal.name for refusal in result.report.left_unpacked} == {"c", "d"}
    again = deftonnx.optimize(model(NETWORK), calib_data=FEED, measure=False, plan=result.plan)
    assert operators(again) == operators(result)


def test_convolutions_left_by_a_plan(optimised) -> None:
    result = optimised(FakeClock({Product: 5e-6, Convolution: 20e-6}), preset="dense16")
    assert operators(result)["Conv"] == 2
    again = deftonnx.optimize(model(NETWORK), calib_data=FEED, measure=False, plan=result.plan)
    assert operators(again) == operators(result)


@pytest.mark.parametrize(
    ("slower", "granularity"), [((), "vector"), ((8,), "block:32"), ((8, 32), "block:64"), ((8, 32, 64), None)]
)
def test_the_finest_granularity_that_is_fast(optimised, slower: Sequence[int], granularity: str | None) -> None:
    clock = FakeClock({Product: 5e-6, Convolution: 5e-6}, slower)
    result = optimised(clock, preset="dense16", density=0.5)
    entry = next(layer for layer in result.plan.layers if layer.name == "b")
    assert entry.granularity == granularity
    if granularity is None:
        assert entry.reason is not None
        assert "at density 0.5 it would take" in entry.reason


@pytest.mark.parametrize(("slower", "block"), [((), 8), ((8,), 32), ((8, 32, 64), None)])
def test_channels_that_nobody_absorbs_are_walked(monkeypatch, slower: Sequence[int], block: int | None) -> None:
    """Nothing is absorbed through the Softmax, and a Gather would cost more than the small convolution saves."""
    proto = model("""g (float[N,64,6,6] x) => (float[N,32,6,6] y) <float[64,64,1,1] k, float[32,64,1,1] l> {
        [a] a = Conv (x, k) s = Softmax <axis=1> (a) [b] y = Conv (s, l) }""")
    monkeypatch.setattr(cuda, "obstacle", lambda: None)
    monkeypatch.setattr(cuda, "devices", lambda: [GPUS["h200"]])
    clock = FakeClock({Convolution: 5e-6}, slower)
    monkeypatch.setattr(gpu_clock, "GpuClock", lambda budget: clock)
    feed = {"x": np.random.default_rng(0).standard_normal((40, 64, 6, 6)).astype(np.float32)}
    options = {"preset": "dense16", "density": 0.5, "keep_last": False, "measure": False}
    result = deftonnx.optimize(proto, calib_data=feed, **options)
    row = next(row for row in result.report.layers if row.name == "b")
    blocks = [
        {a.name: a.i for a in node.attribute}["block"]
        for node in result.model.graph.node
        if node.op_type.startswith("DeftConv")
    ]
    assert "Gather" not in [node.op_type for node in result.model.graph.node]
    if block is None:
        assert blocks == [0, 0]
        assert row.granularity is None
    else:
        assert blocks[0] == 0
        assert blocks[1] >= block
        assert (row.form, row.kept) == ("kept blocks", 32)


def test_equal_layers_are_asked_about_once(optimised) -> None:
    clock = FakeClock({Product: 5e-6, Convolution: 5e-6})
    optimised(clock, preset="dense16")
    assert len(clock.asked) == len(set(clock.asked))


def test_nothing_decides(optimised) -> None:
    clock = FakeClock({Product: 20e-6, Convolution: 20e-6})
    result = optimised(clock, preset="dense16", decide_by="nothing")
    assert clock.asked == []
    assert operators(result) == {"DeftConv": 2, "Conv": 0, "DeftGemm": 2, "MatMul": 0}
    assert all(row.timed is None for row in result.report.layers)


def test_without_a_gpu_the_model_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "obstacle", lambda: "no GPU in this test")
    result = deftonnx.optimize(model(NETWORK), calib_data=FEED, measure=False, preset="dense16", batches=(64,))
    assert {row.timed for row in result.report.layers} == {"estimated"}
    with pytest.raises(UnsupportedError, match="--decide-by measurement: no GPU in this test"):
        deftonnx.optimize(model(NETWORK), calib_data=FEED, preset="dense16", decide_by="measurement")


def test_a_maker_shrinks_once_for_all_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model("""g (float[N,40] x) => (float[N,8] p, float[N,8] q, float[N,8] s) <float[40,96] u, float[96,512] v,
        float[512,8] w> { [a] a = MatMul (x, u) b = Relu (a) [c] c = MatMul (b, v) r = Relu (c)
        [d] p = MatMul (r, w) [e] q = MatMul (r, w) [f] s = MatMul (r, w) }""")
    monkeypatch.setattr(cuda, "obstacle", lambda: None)
    monkeypatch.setattr(cuda, "devices", lambda: [GPUS["h200"]])
    clock = FakeClock({Product: 5e-6})
    monkeypatch.setattr(clock, "_time", lambda work, form: 1e-9 * work.K * work.N * form.density)
    monkeypatch.setattr(gpu_clock, "GpuClock", lambda budget: clock)
    feed = {"x": np.random.default_rng(0).standard_normal((600, 40)).astype(np.float32)}
    options = {"preset": "dense16", "density": 0.5, "keep_last": False, "measure": False}
    deftonnx.optimize(proto, calib_data=feed, **options)
    assert {work.N for work, _ in clock.asked if work.K in (96, 48)} == {512, 256}  # of c


def test_fastest_without_a_run_is_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "observed_shapes", lambda *_: None)
    options = {"preset": "dense16", "density": 0.5, "criterion": "magnitude", "refit": "none", "measure": False}
    for granularity, warned in (("fastest", True), ("auto", False)):
        result = deftonnx.optimize(model(NETWORK), calib_data=FEED, granularity=granularity, **options)
        assert any("--granularity fastest was taken as auto" in line for line in result.report.warnings) == warned


@pytest.mark.parametrize(("unpack", "compute"), [(True, "auto"), (False, "packed")])
def test_times_are_those_of_the_kernels_that_may_serve(optimised, unpack: bool, compute: str) -> None:
    clock = FakeClock({Product: 5e-6, Convolution: 4e-6})
    optimised(clock, preset="dense16", format="deft8:4", unpack=unpack)
    products = [forms for work, forms in clock.asked if isinstance(work, Product)]
    assert products
    assert all(form.compute == compute for forms in products for form in forms if form.operator == DEFT)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="--decide-by 'x' is not one of auto, measurement"):
        deftonnx.optimize(model(NETWORK), decide_by="x")
    with pytest.raises(UsageError, match="--batch"):
        deftonnx.optimize(model(NETWORK), batches=())
    with pytest.raises(UsageError, match=r"--granularity fastest .* needs --target cuda, not any"):
        deftonnx.optimize(model(NETWORK), calib_data=FEED, granularity="fastest")
    for option in ({"portable": True}, {"decide_by": "nothing"}, {"alpha": 0.5}):
        name = next(iter(option)).replace("_", "-")
        with pytest.raises(UsageError, match=f"--granularity fastest compares times.*--{name}"):
            deftonnx.optimize(model(NETWORK), calib_data=FEED, granularity="fastest", target="cuda", **option)
    with pytest.raises(UsageError, match="--gpu x is not one of"):
        deftonnx.optimize(model(NETWORK), calib_data=FEED, preset="dense16", decide_by="model", gpu="x")


def test_every_gpu_has_rates() -> None:
    assert set(RATES) == set(GPUS)


@pytest.mark.parametrize("gpu", sorted(GPUS))
@pytest.mark.parametrize(
    "work",
    [Product(128, 768, 3072, True), Convolution((28, 28), 128, 128, Window.of((3, 3), pads=(1, 1, 1, 1)), True)],
)
def test_estimates_grow_with_the_work(gpu: str, work: Work) -> None:
    clock = ModelClock(GPUS[gpu], RATES[gpu], None)
    stock, packed = Form(STOCK, HALF), Form(DEFT, HALF, "half")
    half = Form(DEFT, HALF, "half", 0.5, 32)
    times = clock.seconds(work, [stock, packed, half], (1, 64))
    for small, large in times.values():
        assert 0 < small < large
    assert times[half][1] < times[packed][1]
