"""Every example runs as a newcomer would run it, in a folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("script", "model"),
    [
        ("lenet_mnist", "demo/lenet5_mnist.deft.onnx"),
        ("vgg_channels", "vgg.deft.onnx"),
        ("vit_elements", "vit.deft.onnx"),
    ],
)
def test_script_writes_a_model_and_ends_with_the_table(script: str, model: str, tmp_path: Path) -> None:
    done = run(tmp_path, sys.executable, EXAMPLES / f"{script}.py")
    assert done.returncode == 0, done.stderr
    for figure in ("file size", "multiply-adds", "latency", "evaluation data"):
        assert figure in done.stdout
    assert "Traceback" not in done.stderr
    ort.InferenceSession(str(tmp_path / model), providers=["CPUExecutionProvider"])


def test_demo_is_accurate_and_smaller(tmp_path: Path) -> None:
    done = run(tmp_path, sys.executable, EXAMPLES / "lenet_mnist.py", "--density", "0.25", "--output", "out")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "top1" in line)
    before, after = (float(cell.strip(" %")) for cell in row.split("│")[2:4])
    assert before == pytest.approx(99.3)
    assert after >= 98.5
    original = (EXAMPLES / "data" / "lenet5_mnist.onnx").stat().st_size
    assert (tmp_path / "out" / "lenet5_mnist.deft.onnx").stat().st_size < 0.3 * original
    assert "<html" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", ["vgg_channels", "vit_elements"])
def test_script_takes_a_model_and_data(script: str, tmp_path: Path) -> None:
    data = EXAMPLES / "data"
    done = run(
        tmp_path,
        *(sys.executable, EXAMPLES / f"{script}.py", data / "lenet5_mnist.onnx", data / "mnist_calibration.npz"),
        *("--eval-data", data / "mnist_test.npz", "--output", "out.onnx"),
    )
    assert done.returncode == 0, done.stderr
    assert "random weights" not in done.stdout
    assert (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(("max_loss", "code"), [("1.0", 0), ("-5", 3)])
def test_ci_script(max_loss: str, code: int, tmp_path: Path) -> None:
    lines = (EXAMPLES / "ci" / "models.txt").read_text().splitlines()
    listed = tmp_path / "models.txt"
    listed.write_text("\n".join([lines[0], "", *(line.rsplit(maxsplit=1)[0] + f" {max_loss}" for line in lines[1:])]))
    done = run(EXAMPLES.parent, "bash", EXAMPLES / "ci" / "optimize_models.sh", listed, tmp_path / "out")
    assert done.returncode == code, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"lenet5_mnist.{suffix}" for suffix in ("deft.onnx", "plan.json", "html", "check.json")}
    assert json.loads((tmp_path / "out" / "lenet5_mnist.check.json").read_text())["passed"] is (code == 0)


def test_ci_script_goes_on_after_a_failure(tmp_path: Path) -> None:
    listed = tmp_path / "models.txt"
    lines = (EXAMPLES / "ci" / "models.txt").read_text()
    listed.write_text(f"missing.onnx calib.npz eval.npz 0.5 1\n{lines}")
    done = run(EXAMPLES.parent, "bash", EXAMPLES / "ci" / "optimize_models.sh", listed, tmp_path / "out")
    assert done.returncode == 2
    assert "model 'missing.onnx' does not exist" in done.stderr
    assert (tmp_path / "out" / "lenet5_mnist.deft.onnx").exists()


def test_the_packed_session_is_accurate(tmp_path: Path) -> None:
    done = run(tmp_path, sys.executable, EXAMPLES / "packed_session.py")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("top-1 ")[1].split("%")[0]) >= 98.5
    original = (EXAMPLES / "data" / "lenet5_mnist.onnx").stat().st_size
    assert (tmp_path / "lenet5_mnist.packed.onnx").stat().st_size < 0.4 * original
