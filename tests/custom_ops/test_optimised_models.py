"""What `optimize` writes, in a CPU session with the library registered: the same results as without it."""

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from gemm_model import ort_value, to_array
from models import assert_same, distance, run
from small_files import inputs, small_model
from small_networks import convolutional, images, samples, transformer

import deftonnx
from deftonnx.formats import GEMM_FORMAT_NAMES
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.overloads import loadable


def with_library(model, options, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize("name", GEMM_FORMAT_NAMES)
def test_transformer(options, name):
    x = samples()
    packed = deftonnx.optimize(transformer(), calib_data=x, density=1.0, format=name, measure=False).model
    assert_same(with_library(packed, options, x), run(packed, {"x": x}), 1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_narrow_activations(options, dtype):
    x = samples()
    wanted = {"density": 1.0, "format": "deft16", "io_types": np.dtype(dtype).name, "measure": False}
    packed = deftonnx.optimize(transformer(), calib_data=x, **wanted).model
    gemms = [node for node in packed.graph.node if is_gemm(node.domain, node.op_type)]
    assert any(len(node.input) == 6 for node in gemms)  # float32 to narrow
    feed = {"x": ort_value(x.astype(dtype))}
    results = []
    for model, session_options in ((packed, options), (loadable(packed), None)):
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), session_options, providers=["CPUExecutionProvider"]
        )
        results.append(to_array(session.run_with_ort_values([packed.graph.output[0].name], feed)[0]).astype(np.float32))
    assert distance(*results) <= {np.float16: 2e-3}.get(dtype, 2e-2)


@pytest.mark.parametrize("granularity", ["block:16", "vector", "element"])
def test_elimination(options, granularity):
    x = inputs(500)
    wanted = {"density": 0.5, "granularity": granularity, "target": "cuda", "keep_last": False, "absorb": False}
    packed = deftonnx.optimize(small_model(), calib_data=x, format="deft8:3", measure=False, **wanted).model
    blocks = [a.i for node in packed.graph.node for a in node.attribute if a.name == "block"]
    assert any(blocks)
    assert_same(with_library(packed, options, x), run(packed, {"x": x}), 1e-6)


def test_beside_a_convolution_that_is_a_function(options):
    x = images()
    packed = deftonnx.optimize(
        convolutional(), calib_data=x, density=0.5, granularity="vector", format="deft16", measure=False
    ).model
    assert "KeptConv" in {node.op_type for node in packed.graph.node}
    assert_same(with_library(packed, options, x), run(packed, {"x": x}), 1e-6)


def test_one_sample_without_a_batch_dimension(options):
    model = small_model("1")
    x = np.asarray(inputs(1))
    packed = deftonnx.optimize(model, format="deft16", measure=False).model
    assert_same(with_library(packed, options, x), run(packed, {"x": x}), 1e-6)
