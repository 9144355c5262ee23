"""`optimize --target cuda` on a GPU: layers are timed, the report has the figures, the result is right."""

import numpy as np
import onnxruntime
import pytest
from models import model
from onnx import TensorProto

import deftonnx
from deftonnx.cost.gpu_clock import GpuClock
from deftonnx.cost.work import DEFT, STOCK, Convolution, Form, Product
from deftonnx.formats.conv_function import Window

pytestmark = pytest.mark.gpu

HALF = TensorProto.FLOAT16
STOCK_HALF, PACKED_HALF = Form(STOCK, HALF), Form(DEFT, HALF, "half")
WINDOW = Window.of((3, 3), pads=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("work", "kept"),
    [
        (Product(128, 768, 768, False), Form(DEFT, HALF, "half", 0.5, 32)),
        (Product(1, 1024, 512, True), Form(DEFT, HALF, "half", 0.5, 0, True)),
        (Convolution((14, 14), 128, 128, WINDOW, True), Form(DEFT, HALF, "half", 0.5, 8)),
        (Convolution((14, 14), 3, 20, WINDOW, False), PACKED_HALF),
    ],
)
def test_every_form_is_timed(work: Product | Convolution, kept: Form) -> None:
    times = GpuClock(60).seconds(work, [STOCK_HALF, PACKED_HALF, kept], (1, 4))
    assert times is not None
    assert set(times) == {STOCK_HALF, PACKED_HALF, kept}
    for of_batches in times.values():
        assert len(of_batches) == 2
        assert all(1e-7 < seconds < 0.1 for seconds in of_batches)  # others may use the GPU


def test_a_spent_budget_is_told() -> None:
    assert GpuClock(0).seconds(Product(1, 64, 64, False), [STOCK_HALF], (1,)) is None


def test_what_pays_is_measured() -> None:
    proto = model("""g (float[N,16,28,28] x) => (float[N,10] y) <float[64,16,3,3] k, float[64] kb, float[64,64,3,3] l,
        float[64,512] w, float[512,10] v> { [a] a = Conv <pads=[1,1,1,1]> (x, k, kb) r = Relu (a)
        [b] b = Conv <pads=[1,1,1,1], strides=[2,2]> (r, l) s = Relu (b) p = GlobalAveragePool (s) f = Flatten (p)
        [c] c = MatMul (f, w) t = Relu (c) [d] y = MatMul (t, v) }""")
    feed = {"x": np.random.default_rng(0).standard_normal((8, 16, 28, 28)).astype(np.float32)}
    result = deftonnx.optimize(proto, calib_data=feed, preset="dense16", decide_by="measurement", batches=(1, 16))
    assert set(result.report.gpu_ms) == {1, 16}
    rows = {row.name: row for row in result.report.layers}
    left = {refusal.name: refusal.reason for refusal in result.report.left_unpacked}
    for name in "abcd":
        if name in left:
            assert "(measured)" in left[name]
            continue
        row = rows[name]
        assert row.timed == "measured"
        assert row.us_before is not None
        assert row.us_after is not None
        assert set(row.us_before) == set(row.us_after) == {1, 16}
        gains = [row.us_before[batch] / row.us_after[batch] for batch in (1, 16)]
        assert gains[0] * gains[1] >= 1.02**2 * 0.999
    want = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)
    session = deftonnx.InferenceSession(result.model, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    got = session.run(None, feed)
    assert np.linalg.norm(got[0] - want[0]) <= 2e-2 * np.linalg.norm(want[0])
