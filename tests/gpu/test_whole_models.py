"""Whole models on the GPU equal their own function bodies on the CPU, with and without a CUDA graph.

Generated networks, exported transformers, and trained models of the folder that DEFTONNX_SHARED names.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from exported import DECODERS, NAMES, exported, feeds
from gpu_model import GpuSession, distance
from whole_networks import inputs_of, network

import deftonnx
from deftonnx import arrays, evaluation

SHARED = Path(os.environ.get("DEFTONNX_SHARED", "missing"))
LIMIT = 2e-2
AGREEMENT = {"float16": 0.995, "bfloat16": 0.985}
STEP = {"float16": 2**-10, "bfloat16": 2**-7}
"""The distance of two numbers of a type to the larger of them: classes so close have no order."""
FORMATS = ("half", "deft16", "deft16q", "deft8:auto")
TYPES = {
    "float16": {"preset": "dense16", "decide_by": "nothing"},
    "bfloat16": {"target": "cuda", "io_types": "bfloat16", "decide_by": "nothing"},
}
"""How to get activations of that type, with our operators wherever they can be."""
TRAINED = {
    "lenet5_mnist": "mnist",
    "cifarnet_full": "cifar10_mean_image",
    "cifarnet_quick": "cifar10_mean_image",
    "resnet20_cifar10": "cifar10_imagenet_stats",
    "vgg16_half_cifar10": "cifar10",
    "vit_cifar10": "cifar10",
    "alexnet_flowers5": "flowers5",
    "squeezenet11_imagenet": "imagenet",
}
CALIBRATION = 2**16
"""Pixels of a channel for calibration, of 32 images at least: what a refit takes grows with them."""
SAMPLES = 400
"""Images that are compared: two of them may be of another class under float16."""


@pytest.fixture(scope="module", autouse=True)
def algebra_on_the_cpu():
    """CuPy compiles its kernels in every process, which takes longer than all of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", None)
        arrays.array_module.cache_clear()
        yield
    arrays.array_module.cache_clear()


def optimised(model, data, kind, form, density, **options):
    """The model in `form` with activations of type `kind`."""
    choice = {**TYPES[kind], "format": form, "density": density, **options}
    return deftonnx.optimize(model, calib_data=data, measure=False, **choice).model


def capturing(model):
    """A session that captures CUDA graphs, or None where ONNX Runtime cannot capture the model."""
    try:
        return GpuSession(model, cuda_graph=True)
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
        if "graph capture feature" not in str(error):
            raise
        return None


def check(model, feeds):
    """Compare the GPU with the CPU, and replays of CUDA graphs with plain runs; return the outputs of both for each."""
    cpu, gpu, graphs = evaluation.session(model), GpuSession(model), capturing(model)
    results = []
    for feed in feeds:
        want, got = evaluation.run(cpu, [feed]), gpu.run(feed)
        assert distance(got, want) <= LIMIT
        replayed = got if graphs is None else graphs.run(feed, times=3)
        for name in got:
            np.testing.assert_array_equal(replayed[name], got[name])
        results.append((got, want))
    return results


@pytest.mark.parametrize("seed", range(60))
def test_generated_networks(seed):
    model = network(seed)
    kind, form = list(TYPES)[seed // 2 % 2], FORMATS[seed // 4 % 4]
    data = inputs_of(model, 32, 24, seed)
    result = optimised(model, data, kind, form, (1.0, 0.5)[seed // 16 % 2], criterion="magnitude", refit="scale")
    check(result, [inputs_of(model, batch, length, seed + 1) for batch, length in ((1, 7), (17, 24))])


@pytest.mark.parametrize("name", NAMES + DECODERS)
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_exported_transformers(name, density):
    result = optimised(exported(name), feeds(name, 16), "float16", "half", density)
    check(result, [feeds(name, batch, length) for batch, length in ((1, 4), (33, 9))])


@functools.cache
def trained(name):
    """The model's path, calibration inputs and test inputs."""
    path = SHARED / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip("DEFTONNX_SHARED names no folder with this trained model")
    sys.path.insert(0, str(SHARED / "eval"))
    try:
        from evaluate import load
    finally:
        sys.path.pop(0)
    calibration, images = load(TRAINED[name], "calib")[0], load(TRAINED[name], "test")[0][:SAMPLES]
    return path, calibration[: max(32, CALIBRATION // calibration[0, 0].size)], images


@pytest.mark.shared
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", list(TYPES))
@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("name", list(TRAINED))
def test_trained_models(name, density, kind, form, record_property):
    path, data, images = trained(name)
    model = optimised(path, data, kind, form, density, criterion="magnitude", refit="least-squares")
    (key,) = [value.name for value in model.graph.input]
    ((got, want),) = check(model, [{key: images}])
    for output in want:
        ours, theirs = got[output].argmax(1), want[output].argmax(1)
        y = want[output].reshape(len(want[output]), -1)
        best, chosen = (np.take_along_axis(y, answer.reshape(-1, 1), 1) for answer in (theirs, ours))
        agreement = float(np.mean(best - chosen <= STEP[kind] * np.abs(best)))
        record_property("agreement", agreement)
        assert agreement >= AGREEMENT[kind]
