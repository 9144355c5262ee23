"""deftonnx.InferenceSession and register: what they choose, and that they leave the caller's choices alone."""

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from gemm_model import gemm_model, reference

import deftonnx
from deftonnx.formats import pack_weight
from deftonnx.runtime import cuda, library, session
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.session import InferenceSession

MARK = "deftonnx.library_registered"


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    X, bias = rng.standard_normal((5, 33)).astype(np.float32), rng.standard_normal(9).astype(np.float32)
    packed = pack_weight(rng.standard_normal((33, 9)).astype(np.float32), "deft8:4")
    return gemm_model(X, packed, bias), X, reference(X, packed, bias)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "obstacle", lambda: "no GPU in this test")


@pytest.fixture
def gpu(monkeypatch, operator_library):
    """As if there were a GPU: sessions still end on the CPU, but with the library registered."""
    monkeypatch.setattr(cuda, "obstacle", lambda: None)
    monkeypatch.setattr(cuda, "devices", list)
    for module in (library, session):
        monkeypatch.setattr(module, "get_library_path", lambda: operator_library)


def registered(made):
    try:
        return made.get_session_options().get_session_config_entry(MARK) == "1"
    except RuntimeError:
        return False


@pytest.mark.parametrize("form", ["bytes", "proto", "path"])
def test_on_the_cpu_the_function_body_runs(case, no_gpu, tmp_path, form):
    model, X, expected = case
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    made = InferenceSession({"bytes": path.read_bytes(), "proto": model, "path": path}[form])
    assert made.get_providers() == ["CPUExecutionProvider"]
    assert not registered(made)
    np.testing.assert_allclose(made.run(None, {"X": X})[0], expected, rtol=1e-5, atol=1e-5)


def test_with_a_gpu_the_library_is_registered(case, gpu):
    model, X, expected = case
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    made = InferenceSession(model.SerializeToString(), options)
    assert registered(made)
    np.testing.assert_allclose(made.run(None, {"X": X})[0], expected, rtol=1e-5, atol=1e-5)


def test_given_providers_are_used_as_they_are(case, gpu):
    model = case[0].SerializeToString()
    made = deftonnx.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert made.get_providers() == ["CPUExecutionProvider"]
    assert not registered(made)


def test_a_gpu_without_machine_code_gets_the_function_bodies(case, gpu, monkeypatch):
    monkeypatch.setattr(cuda, "devices", lambda: [Device("old", 30, 1, 1)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    assert not registered(InferenceSession(case[0].SerializeToString(), options))


def test_the_gpu_that_is_asked_for_counts():
    both = [cuda.PROVIDER, "CPUExecutionProvider"]
    assert session._device_id(both, None) == 0
    assert session._device_id(both, [{"device_id": "2"}, {}]) == 2
    assert session._device_id([(cuda.PROVIDER, {"device_id": 1}), "CPUExecutionProvider"], None) == 1


def test_given_options_are_kept(case, no_gpu):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 3
    made = InferenceSession(case[0].SerializeToString(), options)
    assert made.get_session_options().intra_op_num_threads == 3


def test_without_a_built_library_the_session_still_comes(case, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "obstacle", lambda: None)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    model, X, expected = case
    made = InferenceSession(model.SerializeToString(), options)
    np.testing.assert_allclose(made.run(None, {"X": X})[0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(FileNotFoundError, match="was not built"):
        deftonnx.register(options)
    with pytest.raises(deftonnx.DeftError, match="models run without it"):
        deftonnx.get_library_path()


def test_one_options_object_serves_several_sessions_and_registrations(case, operator_library):
    model, X, expected = case
    options = onnxruntime.SessionOptions()
    for _ in range(2):
        options.register_custom_ops_library(operator_library)
        made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(made.run(None, {"X": X})[0], expected, rtol=1e-5, atol=1e-5)


def test_the_import_leaves_the_session_for_who_asks():
    code = "import sys, deftonnx; assert 'deftonnx.runtime.session' not in sys.modules; deftonnx.InferenceSession"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no_such_name"):
        deftonnx.no_such_name  # noqa: B018


def test_why_there_is_no_gpu_is_one_sentence(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "has no CUDA provider" in cuda.obstacle.__wrapped__()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda.PROVIDER])
    monkeypatch.setattr(cuda, "driver", lambda: None)
    assert "no NVIDIA driver" in cuda.obstacle.__wrapped__()
    monkeypatch.setattr(cuda, "driver", object)
    monkeypatch.setattr(cuda, "device_count", lambda: 0)
    assert "shows no GPU" in cuda.obstacle.__wrapped__()
