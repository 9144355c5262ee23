"""`deftonnx bench` on the CPU: what it runs and what it writes."""

import json

import numpy as np
import pytest
from small_files import files, small_model

from deftonnx.runtime import cuda

QUICK = ("--provider", "cpu", "--rounds", 3, "--seconds", 0.001, "-q")


def test_the_first_model_is_the_baseline(run, folder):
    (folder / "other.onnx").write_bytes(small_model(seed=3).SerializeToString())
    result = run("bench", "model.onnx", "other.onnx", "--batch", 1, "--batch", 8, "--json", "out.json", *QUICK)
    assert result.exit_code == 0, result.output
    content = json.loads((folder / "out.json").read_text())
    rows = content["results"]
    assert [(r["model"], r["batch"]) for r in rows] == [
        ("model.onnx", 1),
        ("other.onnx", 1),
        ("model.onnx", 8),
        ("other.onnx", 8),
    ]
    for base, other in (rows[:2], rows[2:]):
        assert base["speedup"] == 1
        assert base["speedup_range"] == [1, 1]
        assert other["speedup"] == pytest.approx(base["p50"] / other["p50"])
        assert 0 < other["p50"] <= other["p95"]
        assert len(other["round_medians"]) == 3
        assert other["session_s"] > 0
    assert content["environment"]["onnxruntime"]
    assert "other.onnx" in result.stdout


def test_json_alone_on_stdout(run, folder):
    result = run("bench", "model.onnx", "--json", "-", *QUICK)
    assert json.loads(result.stdout)["provider"] == "cpu"


def test_given_inputs(run, folder):
    np.savez("inputs.npz", x=np.ones((3, 16), np.float32))
    assert run("bench", "model.onnx", "--inputs", "inputs.npz", *QUICK).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--provider", "cpu", "--cuda-graph"), 2, "--cuda-graph goes with --provider cuda"),
        (("--provider", "cpu", "--dim", "n"), 2, "--dim n"),
        (("--provider", "cpu", "--inputs", "data.npz", "--batch", "2"), 2, "--batch"),
        (("--provider", "cpu", "--inputs", "model.onnx"), 2, "'model.onnx' is not an .npz"),
        (("--provider", "cpu", "--inputs", "other.npz"), 2, "no array for input 'x' of 'model.onnx'"),
        (("--provider", "cpu", "--inputs", "nowhere.npz"), 2, "--inputs 'nowhere.npz' does not exist"),
        (("--provider", "cpu", "--inputs", "one.npy"), 2, "'one.npy' is not an .npz"),
        (("--provider", "cpu", "--seconds", "0"), 2, "--seconds 0"),
        (("--provider", "cpu", "--seconds", "nan"), 2, "--seconds nan"),
        (("--provider", "cpu", "--json", "."), 2, "'.' is a folder"),
        (("--provider", "cpu", "--json", "nowhere/times.json"), 2, "'nowhere' does not exist"),
        (("--provider", "cpu", "--json", "model.onnx"), 2, "--json 'model.onnx' is an input"),
        (("--provider", "cpu", "--inputs", "data.npz", "--json", "data.npz"), 2, "--json 'data.npz' is an input"),
        (("--provider", "cuda"), 5, "--provider cuda: no GPU in this test"),
    ],
)
def test_refusals(run, folder, monkeypatch, arguments, code, words):
    monkeypatch.setattr(cuda, "obstacle", lambda: "no GPU in this test")
    np.savez("other.npz", z=np.ones(1))
    np.save("one.npy", np.ones(1))
    before = files(folder)
    result = run("bench", "model.onnx", "-q", *arguments)
    assert files(folder) == before
    assert result.exit_code == code
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_model_that_does_not_load_is_named(run, folder):
    (folder / "broken.onnx").write_bytes(b"no model")
    result = run("bench", "model.onnx", "broken.onnx", *QUICK)
    assert result.exit_code == 5
    assert "'broken.onnx'" in result.stderr
