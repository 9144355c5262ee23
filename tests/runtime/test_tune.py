"""`deftonnx tune`, with the clock of a GPU that is made up: what it measures, writes, and the library then chooses."""

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from deftonnx.cli.main import main
from onnx import TensorProto

from deftonnx.formats import pack_weight, unpack_weight
from deftonnx.runtime import cuda, library, tune
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.kernel_choice import kernels_for
from deftonnx.runtime.manifest import read_manifest
from deftonnx.runtime.tuning_table import table_path, table_state

H200 = Device("NVIDIA H200", 90, 132, 141 << 30)


@pytest.fixture
def built(monkeypatch, tmp_path, operator_library):
    """The library with kernels for sm_90, and a cache folder of its own."""
    if 90 not in read_manifest(operator_library).kernels:
        pytest.skip("the library was built without kernels for sm_90")
    monkeypatch.delenv("DEFTONNX_TUNING", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "get_library_path", lambda: operator_library)
    monkeypatch.setattr("deftonnx.cli.tune.get_library_path", lambda: operator_library)
    return operator_library


def tile_rows(kernel):
    """The first number of a tile in a kernel's name, as 128 of …_128x256x64…, or its rows alone"""
    return int(re.search(r"_(\d+)(x\d|$)", kernel)[1])


class Clock:
    """Stands for _Runner: the kernels of the greatest tiles take the least time."""

    def __init__(self, layers, kernel, library):
        self.seconds = 1e-6 / (1 + tile_rows(kernel)) * layers.count

    def bind(self, x):
        return lambda count: self.seconds


def layers(name="half", block=0, K=128, N=48):
    weight = pack_weight(np.random.default_rng(0).standard_normal((K, N)).astype(np.float32), name)
    return tune.Layers(name, TensorProto.FLOAT16, block, K, N, weight)


@pytest.mark.parametrize("block", tune.KEPT_BLOCKS)
def test_the_models_compute_what_their_kernels_are_timed_for(operator_library, block):
    some = layers(block=block)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(operator_library)
    model = some.model("auto")
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    X = np.random.default_rng(1).standard_normal((3, some.features)).astype(np.float16)
    kept = X.reshape(3, -1, block or some.K)[:, :: 2 if block else 1].reshape(3, some.K)
    expected = np.maximum(kept.astype(np.float64) @ unpack_weight(some.weight), 0)
    for Y in session.run(None, {"X": X}):
        np.testing.assert_allclose(Y, expected, rtol=2e-3, atol=2e-3)


def test_weights_outgrow_the_cache():
    big = layers(K=4096, N=4096)
    assert 96 << 20 <= big.count * big.weight.nbytes <= 160 << 20
    assert layers().count == 32


def test_every_kernel_that_can_serve_is_measured(built, monkeypatch):
    monkeypatch.setattr(tune, "_Runner", Clock)
    some = layers(K=1024, N=1024)
    shapes = tune.measure(some, (16, 4096), H200, built)
    for shape in shapes:
        served = kernels_for(some.node(), TensorProto.FLOAT16, TensorProto.FLOAT16, [shape.M], H200, built)
        assert {k.kernel: k.estimate for k in served} == shape.estimated
        assert set(shape.measured) == set(shape.estimated)
    assert [shape.M for shape in shapes] == [16, 4096]
    assert tune.measure(some, (16,), Device("old", 30, 1, 1), built) == []


def test_points_of_several_formats_are_joined():
    shapes = [
        tune.Shape("deft8:4", 10, 0, 1, 2, 3, measured={"a": 100.0}, estimated={"a": 50.0}),
        tune.Shape("deft8:7", 10, 0, 1, 2, 3, measured={"a": 400.0}, estimated={"a": 50.0}),
        tune.Shape("half", 10, 0, 1, 2, 4, measured={"a": 7.0, "b": 2.0}, estimated={"a": 1.0, "b": 4.0}),
    ]
    assert tune.points(shapes) == {"a": [(1, 2, 3, 200.0, 50.0), (1, 2, 4, 7.0, 1.0)], "b": [(1, 2, 4, 2.0, 4.0)]}
    assert shapes[2].gain == 3.5
    assert shapes[0].gain == 1


def test_the_library_chooses_by_the_table(built, monkeypatch):
    monkeypatch.setattr(tune, "_Runner", Clock)
    monkeypatch.setattr(cuda, "obstacle", lambda: None)
    monkeypatch.setattr(cuda, "devices", lambda: [H200])
    some = layers(K=2048, N=2048)

    def ask(M=2048):
        return kernels_for(some.node(), TensorProto.FLOAT16, TensorProto.FLOAT16, [M], H200, built)

    before = ask()
    assert table_state(H200, read_manifest(built)) is None
    result = CliRunner().invoke(main, ["tune", "--quick", "-q"])
    assert result.exit_code == 0, result.output
    path = table_path(90)
    assert str(path) in result.output
    assert table_state(H200, read_manifest(built)) == {"path": str(path), "problem": None}

    after = ask()
    content = json.loads(path.read_text())
    for kernel in after:
        ratio = next(p[3] / p[4] for p in content["kernels"][kernel.kernel] if p[0] == 2048)
        assert kernel.time == pytest.approx(kernel.estimate * ratio, rel=1e-3)
    assert tile_rows(after[0].kernel) == max(tile_rows(k.kernel) for k in before)

    content["library"] = "another"
    path.write_text(json.dumps(content))
    assert "another build" in table_state(H200, read_manifest(built))["problem"]
    assert [k.time for k in ask()] == [k.time for k in before]


def test_where_the_table_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("DEFTONNX_TUNING", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert table_path(89) == tmp_path / "deftonnx" / "sm89.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert table_path(89) == tmp_path / ".cache" / "deftonnx" / "sm89.json"
    monkeypatch.setenv("DEFTONNX_TUNING", "/some/file.json")
    assert str(table_path(89)) == "/some/file.json"
    monkeypatch.setenv("DEFTONNX_TUNING", "")
    assert table_path(89) is None


def test_tuning_needs_a_gpu(built, monkeypatch):
    monkeypatch.setattr(cuda, "obstacle", lambda: "no GPU in this test")
    result = CliRunner().invoke(main, ["tune"])
    assert result.exit_code == 5
    assert result.stderr == "deftonnx: tuning needs a GPU: no GPU in this test\n"
