"""What surrounds the kernels, on a GPU: the session helper, doctor, bench, and tables of measured times."""

import json

import numpy as np
import onnx
import pytest
from gemm_model import gemm_model, reference
from onnx import TensorProto, helper

import deftonnx
from deftonnx.formats import pack_weight
from deftonnx.runtime import cuda, doctor, get_library_path, tune
from deftonnx.runtime.bench import Settings, bench
from deftonnx.runtime.kernel_choice import kernels_for
from deftonnx.runtime.manifest import read_manifest
from deftonnx.runtime.tuning_table import write_table


@pytest.fixture
def case(tmp_path, monkeypatch):
    """packed.onnx, odd.onnx with an operator that CUDA has not, X and Y."""
    monkeypatch.setenv("DEFTONNX_TUNING", "")
    rng = np.random.default_rng(0)
    X, bias = rng.standard_normal((48, 512)).astype(np.float16), rng.standard_normal(256).astype(np.float32)
    packed = pack_weight(rng.standard_normal((512, 256)).astype(np.float32) / 23, "deft8:4")
    model = gemm_model(X, packed, bias, activation="relu")
    onnx.save(model, tmp_path / "packed.onnx")
    model.graph.node.append(helper.make_node("Unique", ["Y"], ["U"], name="unique"))
    model.graph.node.append(helper.make_node("Relu", ["U"], ["V"], name="last"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("V", TensorProto.FLOAT16, ["n"]))
    onnx.save(model, tmp_path / "odd.onnx")
    return tmp_path, X, reference(X, packed, bias, activation="relu")


def near(Y, expected):
    return np.linalg.norm(Y.astype(np.float64) - expected) <= 5e-4 * np.linalg.norm(expected)


def test_session(case):
    folder, X, expected = case
    session = deftonnx.InferenceSession(folder / "packed.onnx")
    assert session.get_providers()[0] == cuda.PROVIDER
    assert session.get_session_options().get_session_config_entry("deftonnx.library_registered") == "1"
    assert near(session.run(None, {"X": X})[0], expected)


def test_doctor(case):
    folder = case[0]
    machine = doctor.examine_machine()
    assert machine["providers"][cuda.PROVIDER]["usable"]
    assert machine["gpu"]["multiprocessors"] > 0
    assert machine["environment"]["driver"]
    assert machine["cuda_libraries"]["cublasLt"]
    assert machine["library"]["problem"] is None
    model = doctor.examine_model(folder / "packed.onnx", None, {})
    assert model["gemms"][0]["M"] == 48
    kernels = read_manifest(get_library_path()).kernels
    kernel = model["gemms"][0]["kernel"].removesuffix("_unpacked")
    assert any(kernel in names for names in kernels.values())
    assert (model["memcpy"], model["on_cpu"], model["cuda_graph"]) == (0, [], True)
    odd = doctor.examine_model(folder / "odd.onnx", None, {})
    assert odd["memcpy"] == 2
    assert odd["on_cpu"] == ["Unique unique"]
    assert odd["cuda_graph"] is False


def test_bench(case):
    model = case[0] / "packed.onnx"
    for cuda_graph in (False, True):
        settings = Settings("cuda", cuda_graph=cuda_graph, rounds=3, seconds=0.02)
        first, second = bench([model, model], settings, lambda text: None)
        assert first.library
        assert 0 < first.p50 <= first.p95
        assert first.speedup == 1
        assert second.speedup == pytest.approx(first.p50 / second.p50)
    with pytest.raises(deftonnx.DeftError, match="CUDA graph"):
        bench([case[0] / "odd.onnx"], Settings("cuda", cuda_graph=True), lambda text: None)


@pytest.fixture
def layers():
    weight = pack_weight(np.random.default_rng(0).standard_normal((256, 128)).astype(np.float32), "half")
    return tune.Layers("half", TensorProto.FLOAT16, 0, 256, 128, weight)


def test_tune_measures_every_kernel(case, layers):
    device, library = cuda.devices()[0], get_library_path()
    shapes = tune.measure(layers, (1, 200), device, library)
    for shape in shapes:
        served = kernels_for(layers.node(), TensorProto.FLOAT16, TensorProto.FLOAT16, [shape.M], device, library)
        assert set(shape.measured) == {k.kernel for k in served}
        assert all(500 < time < 1e8 for time in shape.measured.values())  # nanoseconds; others may use the GPU
    assert [shape.M for shape in shapes] == [1, 200]


def test_tables(case, monkeypatch, capfd):
    """A table that turns the choice around, and a broken one: the same results."""
    folder, X, expected = case
    device, library = cuda.devices()[0], get_library_path()
    node = onnx.load(folder / "packed.onnx").graph.node[0]
    first, *others = kernels_for(node, TensorProto.FLOAT16, TensorProto.UINT8, [48], device, library)
    table = folder / "table.json"
    measured_as = first.kernel.removesuffix("_unpacked")  # a table knows the kernel, not where its weights are from
    write_table(table, device, read_manifest(library), {measured_as: [(48, 512, 256, 1000.0, 1.0)]}, {})
    monkeypatch.setenv("DEFTONNX_TUNING", str(table))
    if others:
        assert kernels_for(node, TensorProto.FLOAT16, TensorProto.UINT8, [48], device, library)[0] != first
    assert near(deftonnx.InferenceSession(folder / "packed.onnx").run(None, {"X": X})[0], expected)
    assert "tuning table" not in capfd.readouterr().err
    table.write_text(json.dumps({"library": "another"}))
    assert near(deftonnx.InferenceSession(folder / "packed.onnx").run(None, {"X": X})[0], expected)
    assert "tuning table" in capfd.readouterr().err
