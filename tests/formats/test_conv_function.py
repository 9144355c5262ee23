"""The function body of DeftConv in stock ONNX Runtime against NumPy."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from conv_model import conv_case, conv_model, reference
from gemm_model import DTYPES, run_gemm
from hypothesis import given, settings
from hypothesis import strategies as st

from deftonnx.formats import FORMAT_NAMES, FormatError, pack_weight
from deftonnx.formats.activation import ACTIVATIONS
from deftonnx.formats.conv_function import SQUARES, Window, conv_attributes

TOLERANCE = {np.float32: 1e-6, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}
WINDOWS = {
    "1x1": ((5, 6), 8, 5, Window.of((1, 1))),
    "3x3": ((6, 5), 8, 4, Window.of((3, 3), pads=(1, 1, 1, 1))),
    "strided": ((7, 9), 6, 4, Window.of((3, 2), strides=(2, 3))),
    "asymmetric": ((6, 6), 4, 4, Window.of((3, 3), pads=(0, 1, 2, 0))),
    "dilated": ((9, 8), 4, 6, Window.of((3, 3), pads=(2, 2, 2, 2), dilations=(2, 3))),
    "groups": ((5, 5), 8, 6, Window.of((3, 3), group=2)),
    "depthwise": ((6, 6), 5, 10, Window.of((3, 3), pads=(1, 1, 1, 1), group=5)),
    "1d": ((11,), 6, 4, Window.of((4,), strides=(2,), pads=(1, 2), dilations=(2,))),
    "1d_groups": ((9,), 8, 8, Window.of((3,), group=4)),
}


def check(Y, expected, dtype=np.float32):
    assert Y.dtype == dtype
    assert Y.shape == expected.shape
    assert np.linalg.norm(Y.astype(np.float64) - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("window", WINDOWS)
def test_every_format_and_window(window, name):
    X, packed, bias, _ = conv_case(1, *WINDOWS[window], name)
    check(
        run_gemm(conv_model(X, packed, bias, WINDOWS[window][-1]), X), reference(X, packed, bias, WINDOWS[window][-1])
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(activation, dtype):
    window = WINDOWS["3x3"][-1]
    X, packed, bias, _ = conv_case(2, *WINDOWS["3x3"], "deft8:4", dtype)
    residual = np.random.default_rng(3).standard_normal((2, 6, 5, 4)).astype(dtype)
    epilogue = {"activation": activation, "alpha": 0.2, "beta": 0.5, "residual": residual}
    Y = run_gemm(conv_model(X, packed, bias, window, **epilogue), X, residual)
    check(Y, reference(X, packed, bias, window, **epilogue), dtype)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_pooled(activation):
    layer = ((8, 11), 6, 5, Window.of((3, 2), pads=(1, 1, 0, 0)))
    X, packed, bias, _ = conv_case(12, *layer, "half", np.float16)
    how = {"activation": activation, "pool": SQUARES}
    check(
        run_gemm(conv_model(X, packed, bias, layer[-1], **how), X),
        reference(X, packed, bias, layer[-1], **how),
        np.float16,
    )


@pytest.mark.parametrize(("window", "pool"), [(Window.of((3,)), SQUARES), (Window.of((3, 3)), (3, 3))])
def test_what_cannot_be_pooled(window, pool):
    packed = pack_weight(np.ones((8 * 3 ** len(window.kernel_shape), 4), np.float32), "half")
    with pytest.raises(FormatError, match="pools images of two axes"):
        conv_attributes(packed, window, 8, pool=pool)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("image", "channels", "window", "block"),
    [
        ((5, 6), 32, Window.of((3, 3), pads=(1, 1, 1, 1)), 16),
        ((5, 6), 48, Window.of((3, 2), strides=(2, 1)), 8),
        ((6, 5), 32, Window.of((3, 3), group=2), 8),
        ((9,), 24, Window.of((3,), pads=(1, 1), group=3), 4),
        ((4, 4), 5, Window.of((2, 2)), 1),
    ],
    ids=str,
)
def test_elimination(image, channels, window, block, residual):
    X, packed, bias, kept = conv_case(4, image, channels, 6, window, "deft16", block=block)
    expected = reference(X, packed, bias, window, kept=kept, block=block)
    added = np.random.default_rng(5).standard_normal(expected.shape).astype(np.float32) if residual else None
    Y = run_gemm(conv_model(X, packed, bias, window, kept=kept, block=block, residual=added), X, added)
    check(Y, expected + (0 if added is None else added))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_window(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    axes, group = draw(1, 2), draw(1, 3)
    kernel, strides, dilations = ([draw(1, 3) for _ in range(axes)] for _ in range(3))
    pads = [draw(0, 2) for _ in range(2 * axes)]
    image = [d * (k - 1) + 1 + draw(0, 4) for k, d in zip(kernel, dilations, strict=True)]
    window = Window.of(kernel, strides, pads, dilations, group)
    block = data.draw(st.sampled_from([0, 2]))
    channels, outputs = 4 * draw(1, 2) * group, draw(1, 4) * group
    X, packed, bias, kept = conv_case(draw(0, 99), image, channels, outputs, window, "half", batch=1, block=block)
    Y = run_gemm(conv_model(X, packed, bias, window, kept=kept, block=block), X)
    check(Y, reference(X, packed, bias, window, kept=kept, block=block))


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_opsets(opset):
    image, channels, _, window = WINDOWS["groups"]
    X, packed, bias, kept = conv_case(6, image, channels, 6, window, "deft16q", block=2)
    Y = run_gemm(conv_model(X, packed, bias, window, kept=kept, block=2, opset=opset), X)
    check(Y, reference(X, packed, bias, window, kept=kept, block=2))


def test_the_weight_is_unpacked_when_the_session_is_made(tmp_path):
    X, packed, bias, kept = conv_case(7, (6, 6), 16, 8, WINDOWS["3x3"][-1], "deft8:3", block=8)
    model = conv_model(X, packed, bias, WINDOWS["3x3"][-1], kept=kept, block=8)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert operators <= {"Transpose", "Conv", "Cast", "Identity"}


def test_three_axes_and_an_old_opset_are_refused():
    X, packed, bias, _ = conv_case(8, *WINDOWS["1x1"], "deft16")
    with pytest.raises(FormatError, match="opset 13"):
        conv_model(X, packed, bias, WINDOWS["1x1"][-1], opset=12)
    cube = pack_weight(np.ones((8, 2), np.float32), "half")
    with pytest.raises(FormatError, match="one or two axes, not 3"):
        conv_attributes(cube, Window.of((2, 2, 2)), 1)
