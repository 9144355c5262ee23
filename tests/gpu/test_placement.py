"""Where operands lie and what runs them: parts of tensors at any address, and graphs that others capture."""

import ctypes

import attention_model
import channels_last_model
import numpy as np
import onnxruntime
import pool_model
import pytest
from conv_model import conv_case, conv_model
from gemm_model import gemm_model
from mlp_model import Chain

from deftonnx.formats import pack_weight
from deftonnx.formats.conv_function import Window

CUDA = ("CUDAExecutionProvider",)
AROUND = 16
"""Elements around an operand."""


def gemm(rows, features, form, dtype=np.float16, with_residual=False, **attributes):
    """Inputs by name, and a model of one DeftGemm."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, features)).astype(dtype)
    residual = rng.standard_normal((rows, 72)).astype(dtype) if with_residual else None
    packed = pack_weight(rng.standard_normal((features, 72)).astype(np.float32) / 8, form)
    model = gemm_model(X, packed, np.zeros(72, np.float32), residual=residual, **attributes)
    return {"X": X, **({} if residual is None else {"residual": residual})}, model


def conv(image, channels, outputs, window, dtype=np.float16, with_residual=False, **attributes):
    """The same for DeftConv."""
    X, packed, bias, _ = conv_case(0, image, channels, outputs, window, "half", dtype)
    residual = None
    if with_residual:
        residual = np.random.default_rng(1).standard_normal((len(X), *image, outputs)).astype(dtype)
    model = conv_model(X, packed, bias, window, residual=residual, **attributes)
    return {"X": X, **({} if residual is None else {"residual": residual})}, model


def pool(name):
    X, model, _ = pool_model.case(name, np.float16)
    return {"X": X}, model


def attention(shape, bias, kind):
    inputs, model, _ = attention_model.case(shape, bias, np.float16, kind=attention_model.KINDS[kind])
    return {k: v for k, v in zip(attention_model.NAMES, inputs, strict=True) if v is not None}, model


def channels_last(name):
    X, model, _ = channels_last_model.case(name, np.float16)
    return {"X": X}, model


def mlp(rows, widths, **options):
    chain = Chain(widths, np.float16, **options)
    return {"X": chain.rows(rows)}, chain.model


SAME = Window(kernel_shape=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=1)
DEPTHWISE = Window(kernel_shape=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=64)
CASES = {
    "gemm_few_rows": lambda: gemm(5, 128, "half"),
    "gemm_codes": lambda: gemm(9, 128, "deft8:4", with_residual=True),
    "gemm_many_rows": lambda: gemm(300, 128, "half", with_residual=True),
    "gemm_many_rows_of_codes": lambda: gemm(300, 128, "deft8:3"),
    "gemm_fp8": lambda: gemm(200, 128, "fp8"),
    "gemm_float32": lambda: gemm(70, 80, "half", np.float32, with_residual=True),
    "gemm_without_tensor_cores": lambda: gemm(20, 48, "deft16q", np.float32, compute="simt"),
    "conv": lambda: conv((12, 9), 64, 64, SAME, with_residual=True),
    "conv_few_channels": lambda: conv((12, 9), 3, 16, SAME),
    "conv_depthwise": lambda: conv((12, 9), 64, 64, DEPTHWISE),
    "conv_direct": lambda: conv((12, 9), 64, 64, SAME, compute="fp16_direct", with_residual=True),
    "conv_cudnn": lambda: conv((12, 9), 64, 64, SAME, compute="cudnn", with_residual=True),
    "conv_float32": lambda: conv((12, 9), 16, 8, SAME, np.float32),
    "pool": lambda: pool("max"),
    "pool_of_the_image": lambda: pool("average_global"),
    "normalise": lambda: pool("normalise"),
    "attention": lambda: attention((2, 33, 4, 64), "rows", "causal"),
    "attention_rotary": lambda: attention((2, 33, 4, 32), "no_bias", "decoder"),
    "mlp": lambda: mlp(20, (48, 64, 24)),
    "mlp_of_odd_widths": lambda: mlp(20, (33, 64, 7)),
    "mlp_layer_by_layer": lambda: mlp(20, (48, 64, 24), compute="layers"),
    "mlp_of_float32": lambda: mlp(20, (48, 64, 24), x_type=np.float32, y_type=np.float32),
    "channels_last": lambda: channels_last("eight_channels"),
    "few_channels_last": lambda: channels_last("three_channels"),
}


def placed(array, offset):
    """Memory of the GPU that holds `array` `offset` elements from its begin, amid NaN."""
    around = np.full(array.size + 2 * AROUND, np.nan, array.dtype)
    around[offset : offset + array.size] = array.ravel()
    return onnxruntime.OrtValue.ortvalue_from_numpy(around, "cuda", 0)


@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_operands_anywhere(options, name, offset):
    inputs, model = CASES[name]()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(CUDA))
    (want,) = session.run(None, inputs)
    binding, memory = session.io_binding(), []
    bound = {**inputs, "Y": np.zeros_like(want)}
    for key, array in bound.items():
        memory.append(placed(array, offset))
        bind = binding.bind_output if key == "Y" else binding.bind_input
        address = memory[-1].data_ptr() + offset * array.itemsize
        bind(key, "cuda", 0, array.dtype, list(array.shape), address)
    session.run_with_iobinding(binding)
    got = memory[-1].numpy()
    assert np.isnan(got[:offset]).all()
    assert np.isnan(got[offset + want.size :]).all()
    np.testing.assert_array_equal(got[offset : offset + want.size].reshape(want.shape), want)


@pytest.fixture
def stream():
    """A stream, and what captures all that is put on it."""
    driver = ctypes.CDLL("libcuda.so.1")
    handle = ctypes.c_void_p()
    session = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0)  # a context
    assert driver.cuStreamCreate(ctypes.byref(handle), 1) == 0
    yield handle, driver
    driver.cuStreamDestroy_v2(handle)
    del session


@pytest.mark.parametrize("compute", ["auto", "cudnn"])
def test_images_of_a_new_size_while_others_capture(options, stream, compute):
    handle, driver = stream
    X, packed, bias, _ = conv_case(0, (14, 14), 64, 64, SAME, "half", np.float16, batch=1)
    model = conv_model(X, packed, bias, SAME, batch="N", compute=compute)
    provider = ("CUDAExecutionProvider", {"user_compute_stream": str(handle.value)})
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
    several = np.concatenate([X] * 3)
    (want,) = session.run(None, {"X": X})
    settings = onnxruntime.RunOptions()
    settings.add_run_config_entry("disable_synchronize_execution_providers", "1")
    binding = session.io_binding()
    x, y = (onnxruntime.OrtValue.ortvalue_from_numpy(a, "cuda", 0) for a in (several, np.concatenate([want] * 3)))
    binding.bind_ortvalue_input("X", x)
    binding.bind_ortvalue_output("Y", y)
    y.update_inplace(np.zeros((3, *want.shape[1:]), np.float16))
    graph, relaxed = ctypes.c_void_p(), 2
    assert driver.cuStreamBeginCapture_v2(handle, relaxed) == 0
    try:
        if compute == "cudnn":
            with pytest.raises(Exception, match="while a CUDA graph is captured"):
                session.run_with_iobinding(binding, settings)
        else:
            session.run_with_iobinding(binding, settings)
    finally:
        assert driver.cuStreamEndCapture(handle, ctypes.byref(graph)) == 0
    if compute == "cudnn":
        return
    runnable = ctypes.c_void_p()
    assert driver.cuGraphInstantiateWithFlags(ctypes.byref(runnable), graph, ctypes.c_ulonglong(0)) == 0
    assert driver.cuGraphLaunch(runnable, handle) == 0
    assert driver.cuStreamSynchronize(handle) == 0
    np.testing.assert_allclose(y.numpy(), np.concatenate([want] * 3), rtol=2e-3, atol=2e-3)
