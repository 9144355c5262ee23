"""DeftConv in sessions on the CPU with the library registered: the same results, and bad nodes refused at creation."""

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from conv_model import conv_case, conv_model, reference
from gemm_model import DTYPES, run_gemm
from models import feed_for, mask, model, prepare, reduce, run
from refusals import refusal, with_attribute

from deftonnx.formats import FORMAT_NAMES
from deftonnx.formats.activation import ACTIVATIONS
from deftonnx.formats.conv_function import SQUARES, Window

TOLERANCE = {np.float32: 1e-6, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}
SAME = Window.of((3, 3), pads=(1, 1, 1, 1))
WINDOWS = [
    ((5, 6), 8, 5, Window.of((1, 1))),
    ((7, 9), 6, 4, Window.of((3, 2), strides=(2, 3), pads=(0, 1, 2, 0))),
    ((9, 8), 4, 6, Window.of((3, 3), pads=(2, 2, 2, 2), dilations=(2, 3))),
    ((5, 5), 8, 36, Window.of((3, 3), group=2)),
    ((6, 6), 5, 10, Window.of((3, 3), pads=(1, 1, 1, 1), group=5)),
    ((11,), 6, 4, Window.of((4,), strides=(2,), pads=(1, 2), dilations=(2,))),
]


def check(Y, expected, dtype=np.float32):
    assert Y.dtype == dtype
    assert Y.shape == expected.shape
    assert np.linalg.norm(Y.astype(np.float64) - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_formats(options, name, dtype):
    X, packed, bias, _ = conv_case(1, (6, 5), 7, 20, SAME, name, dtype)
    check(run_gemm(conv_model(X, packed, bias, SAME), X, options=options), reference(X, packed, bias, SAME), dtype)


@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_windows(options, case):
    X, packed, bias, _ = conv_case(2, *case, "half")
    Y = run_gemm(conv_model(X, packed, bias, case[-1]), X, options=options)
    check(Y, reference(X, packed, bias, case[-1]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(options, activation):
    X, packed, bias, _ = conv_case(3, (5, 4), 8, 6, SAME, "deft16")
    residual = np.random.default_rng(4).standard_normal((2, 5, 4, 6)).astype(np.float32)
    epilogue = {"activation": activation, "alpha": 0.2, "beta": 0.5, "residual": residual}
    Y = run_gemm(conv_model(X, packed, bias, SAME, **epilogue), X, residual, options)
    check(Y, reference(X, packed, bias, SAME, **epilogue))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_pooled(options, dtype):
    window = Window.of((3, 2), pads=(1, 1, 0, 0))
    X, packed, bias, _ = conv_case(14, (8, 11), 6, 5, window, "deft16", dtype)
    how = {"activation": "relu", "pool": SQUARES}
    Y = run_gemm(conv_model(X, packed, bias, window, **how), X, options=options)
    check(Y, reference(X, packed, bias, window, **how), dtype)


@pytest.mark.parametrize("group", [1, 2])
def test_elimination(options, group):
    window = Window.of((3, 3), pads=(1, 1, 1, 1), group=group)
    X, packed, bias, kept = conv_case(5, (6, 5), 32, 10, window, "deft8:3", block=8)
    Y = run_gemm(conv_model(X, packed, bias, window, kept=kept, block=8), X, options=options)
    check(Y, reference(X, packed, bias, window, kept=kept, block=8))


def test_an_empty_batch(options):
    X, packed, bias, _ = conv_case(6, (6, 5), 8, 4, SAME, "half", batch=0)
    assert run_gemm(conv_model(X, packed, bias, SAME), X, options=options).shape == (0, 6, 5, 4)


def test_threads_do_not_change_a_bit(library):
    X, packed, bias, _ = conv_case(7, (30, 29), 20, 40, SAME, "deft16")
    results = []
    for threads in (1, 4):
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = threads
        session_options.register_custom_ops_library(library)
        results.append(run_gemm(conv_model(X, packed, bias, SAME), X, options=session_options))
    assert np.array_equal(*results)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("format", "deft9", "unknown format 'deft9'"),
        ("layout", 2, "layout version 2"),
        ("kernel_shape", [3, 3, 3], "one or two values"),
        ("kernel_shape", [3], "do not match the 1 axes"),
        ("kernel_shape", None, "'kernel_shape' is missing"),
        ("kernel_shape", [3, 0], "must be positive"),
        ("strides", [1, 0], "must be positive"),
        ("dilations", [1], "do not match the 2 axes"),
        ("pads", [0, 0, 0, -1], "must not be negative"),
        ("group", 3, "does not divide channels and N"),
        ("channels", 4, "block = 0 keeps all"),
        ("channels", 0, "channels = 0 is out of range"),
        ("block", 16, "does not divide K and the channels of a group"),
        ("block", 8, "input kept is missing"),
        ("pool", [3, 3], "pool = (3, 3), but images of two axes alone are pooled, by (2, 2)"),
        ("pool", [2], "pool = (2)"),
        ("pool", 2, "attribute 'pool' is no list of integers"),
        ("pool", "2", "attribute 'pool' is no list of integers"),
        ("kernel_shape", [1 << 20, 1 << 20], "too many features"),
        ("activation", "softmax", "unknown activation"),
        ("output_type", 16, "output_type"),
    ],
)
def test_bad_attributes_are_refused(options, attribute, value, reason):
    X, packed, bias, _ = conv_case(8, (6, 5), 8, 5, SAME, "half")
    model = conv_model(X, packed, bias, SAME)
    assert reason in refusal(with_attribute(model, attribute, value), options)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ([0, 1, 9, 36], "kept block 36 is outside the 18 blocks of group 1"),
        ([0, 18, 19, 20], "kept block 18 is outside the 18 blocks of group 0"),
        ([1, 0, 18, 19], "must ascend"),
        ([0, 1, 18], "expected (4)"),
    ],
)
def test_bad_kept_blocks_are_refused(options, kept, reason):
    window = Window.of((3, 3), group=2)
    X, packed, bias, _ = conv_case(9, (6, 5), 32, 6, window, "half", block=8, density=2 / 18)
    assert packed.K == 16
    if "36" in reason:
        kept = [0, 1, 18, 36]
    assert reason in refusal(conv_model(X, packed, bias, window, kept=kept, block=8), options)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((2, 6, 5, 9), "channels"), ((2, 6, 8), "axes"), ((2, 1, 5, 8), "smaller than the filter")],
)
def test_a_wrong_input_shape_is_an_error_not_a_crash(options, shape, reason):
    window = Window.of((3, 3))
    X, packed, bias, _ = conv_case(10, (6, 5), 8, 5, window, "half")
    model = conv_model(X, packed, bias, window)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=reason):
        session.run(None, {"X": np.zeros(shape, np.float32)})


def test_the_library_leaves_kept_conv_to_its_body(options):
    proto = model("graph (float[N,16,6,5] x) => (float[N,4,c,d] y) <float[4,16,3,3] w>{ [c] y = Conv (x, w) }")
    graph, (layer,) = prepare(proto)
    mask(layer, np.repeat(np.arange(18).reshape(1, 9, 2) % 5 > 1, 8, axis=2))
    small = reduce(graph, [layer], proto)
    assert small.graph.node[0].op_type == "KeptConv"
    feed = feed_for(proto)
    session = onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, feed)[0], run(small, feed)[0])
