"""What the commands promise about their output: where it goes, that it is the same twice, and what it says."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import Result
from onnx import parser
from small_files import SAMPLES, files, inputs, small_model

import deftonnx
from deftonnx import model_file

Run = Callable[..., Result]
OPTIMIZE = ("optimize", "model.onnx")
WITH_DATA = (*OPTIMIZE, "--calib-data", "data.npz", "--density", "0.5")
PROGRAM = [sys.executable, "-c", "from deftonnx.cli.main import main; main()"]


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.stderr
    return result


def outputs(path: Path | str, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


# Where output goes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "schema"),
    [
        (WITH_DATA, "deftonnx-report"),
        ((*OPTIMIZE, "-v"), "deftonnx-report"),
        ((*OPTIMIZE, "--calib-data", "random"), "deftonnx-report"),
        ((*OPTIMIZE, "--calib-data", "chatty.py"), "deftonnx-report"),
        ((*WITH_DATA, "--metric", "chatty:score", "--eval-data", "data.npz"), "deftonnx-report"),
        (("inspect", "model.onnx"), "deftonnx-inspect"),
        (("check", "model.onnx", "--reference", "model.onnx", "--eval-data", "data.npz"), "deftonnx-check"),
    ],
)
def test_json_is_all_there_is_on_stdout(run: Run, folder: Path, arguments: tuple[str, ...], schema: str) -> None:
    (folder / "chatty.py").write_text(
        "import numpy as np\nprint('hello')\n"
        "def calibration_data():\n    print('hello')\n    yield {'x': np.ones((4, 16), np.float32)}\n"
        "def score(outputs, labels):\n    print('hello')\n    return 1\n"
    )
    content = json.loads(ok(run(*arguments, "--json")).stdout)
    assert (content["schema"], content["version"]) == (schema, 1)


def test_json_has_no_nan(run: Run, folder: Path) -> None:
    model = small_model()
    model.graph.initializer[0].raw_data = np.full((16, 32), np.nan, np.float32).tobytes()
    onnx.save(model, folder / "nan.onnx")
    result = run("check", "nan.onnx", "--reference", "model.onnx", "--eval-data", "data.npz", "--metric", "rel-l2",
                 "--max-loss", "1", "--json")  # fmt: skip
    assert result.exit_code == 3
    assert "--max-loss" in result.stderr
    assert json.loads(result.stdout)["score"]["loss"] is None


def in_terminal(folder: Path, arguments: tuple[str, ...], **environment: str) -> tuple[str, str]:
    """Standard output through a pipe, and standard error on a terminal."""
    terminal, side = pty.openpty()
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=side,
        env={**variables, "TERM": "xterm-256color", **environment},
    )
    os.close(side)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # how Linux reports that the other side was closed
        pass
    os.close(terminal)
    stdout = process.communicate(timeout=60)[0]
    assert process.returncode == 0, shown
    return stdout.decode(), shown.decode()


def test_progress_is_shown_on_a_terminal_only(folder: Path) -> None:
    stdout, shown = in_terminal(folder, WITH_DATA)
    assert "Gemm fc1" in shown
    assert "multiply-adds" in stdout
    assert "\x1b" not in stdout
    assert "Gemm fc1" not in in_terminal(folder, (*WITH_DATA, "-q", "--force"))[1]
    piped = subprocess.run([*PROGRAM, *WITH_DATA, "--force"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert "Gemm fc1" not in piped.stderr  # a warning may be there: on a busy machine the result can seem slower
    assert "\x1b" not in piped.stderr


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color(folder: Path, environment: dict[str, str], coloured: bool) -> None:
    _, shown = in_terminal(folder, (*OPTIMIZE, "--dry-run"), **environment)
    assert "without --calib-data" in shown
    assert bool(re.search(r"\x1b\[[\d;]*3\dm", shown)) is coloured


def test_ascii_terminal(folder: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "inspect", "model.onnx"],
        cwd=folder,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert b"fc1" in done.stdout


def test_quiet(run: Run, folder: Path) -> None:
    result = ok(run(*WITH_DATA, "-q"))
    assert (result.stdout, result.stderr) == ("", "")
    assert (folder / "model.deft.onnx").exists()


def test_verbose_names_every_layer(run: Run, folder: Path) -> None:
    shown = ok(run(*WITH_DATA, "-v")).stdout
    assert all(name in shown for name in ("fc0", "fc1", "fc2"))
    assert "the first layer is kept" in shown


@pytest.mark.parametrize("name", ["[red]fc", "<b>&fc", ":smile:"])
def test_names_are_text_not_markup(run: Run, folder: Path, name: str) -> None:
    model = small_model()
    for serial in (0, 1):
        model.graph.node[2 * serial].name = f"{name}{serial}"
    onnx.save(model, folder / f"{name}.onnx")
    arguments = ("optimize", f"{name}.onnx", "--calib-data", "data.npz", "--density", "0.5")
    shown = ok(run(*arguments, "-v", "--report", "report.html")).stdout
    assert f"{name}0" in shown
    assert f"{name}1" in shown
    assert f"{name}.onnx" in shown
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{name}1".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in page
    assert "<b>" not in page
    assert f"{name}1" in ok(run("inspect", f"{name}.onnx")).stdout


# What is written -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "output"),
    [("a.onnx", "a.deft.onnx"), ("a", "a.deft.onnx"), ("v1.5", "v1.5.deft.onnx"), ("a.b.onnx", "a.b.deft.onnx")],
)
def test_default_output(run: Run, folder: Path, name: str, output: str) -> None:
    (folder / "model.onnx").rename(folder / name)
    ok(run("optimize", name, "-q"))
    assert set(files(folder)) == {name, output, "data.npz"}


def test_model_alone(run: Run, folder: Path) -> None:
    """Without data the result is lossless, and one line says what data would add."""
    result = ok(run(*OPTIMIZE))
    assert len(result.stderr.splitlines()) == 1
    assert "--calib-data" in result.stderr
    x = inputs()
    np.testing.assert_allclose(outputs("model.deft.onnx", x), outputs("model.onnx", x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [["--calib-data", "random"], ["--criterion", "correlation", "--refit", "scale"], ["--alpha", "0.5"]]
)
def test_doubtful_calibration_warns_but_works(run: Run, folder: Path, options: list[str]) -> None:
    result = ok(run(*OPTIMIZE, *options))
    assert "warning: " in result.stderr
    assert (folder / "model.deft.onnx").exists()


def test_dry_run_writes_nothing(run: Run, folder: Path) -> None:
    before = files(folder)
    assert "not written" in ok(run(*WITH_DATA, "--dry-run")).stdout
    assert files(folder) == before


def test_dry_run_needs_no_place_to_write_to(run: Run, folder: Path) -> None:
    (folder / "model.deft.onnx").write_bytes(b"precious")
    ok(run(*WITH_DATA, "--dry-run"))
    assert (folder / "model.deft.onnx").read_bytes() == b"precious"


GRANULARITIES = (("--granularity", "element"), ("--granularity", "vector"), ("--no-absorb",), ("--alpha", "0.2"))


@pytest.mark.parametrize("options", GRANULARITIES, ids=" ".join)
def test_same_bytes_twice(run: Run, folder: Path, options: tuple[str, ...]) -> None:
    arguments = WITH_DATA[:-2] if "--alpha" in options else WITH_DATA
    for name in ("one", "two"):
        ok(run(*arguments, *options, "--calib-samples", "40", "--seed", "7", "-o", f"{name}.onnx", "-q"))
    assert (folder / "one.onnx").read_bytes() == (folder / "two.onnx").read_bytes()
    ok(run(*arguments, *options, "--calib-samples", "40", "--seed", "8", "-o", "three.onnx", "-q"))
    assert (folder / "one.onnx").read_bytes() != (folder / "three.onnx").read_bytes()


@pytest.mark.parametrize("options", GRANULARITIES, ids=" ".join)
def test_idempotent(run: Run, folder: Path, options: tuple[str, ...]) -> None:
    arguments = ("--calib-data", "data.npz", *(() if "--alpha" in options else ("--density", "0.5")), *options)
    ok(run("optimize", "model.onnx", *arguments, "-o", "once.onnx", "-q"))
    ok(run("optimize", "once.onnx", *arguments, "-o", "twice.onnx", "-q"))
    assert (folder / "once.onnx").read_bytes() == (folder / "twice.onnx").read_bytes()


def test_lossless_run_is_idempotent(run: Run, folder: Path) -> None:
    ok(run("optimize", "model.onnx", "-o", "once.onnx", "-q"))
    ok(run("optimize", "once.onnx", "-o", "twice.onnx", "-q"))
    assert (folder / "once.onnx").read_bytes() == (folder / "twice.onnx").read_bytes()


@pytest.mark.parametrize("options", [(), *GRANULARITIES[:3]], ids=" ".join)
def test_plan_replays_bit_for_bit(run: Run, folder: Path, options: tuple[str, ...]) -> None:
    ok(run(*WITH_DATA, *options, "--seed", "3", "--plan-out", "plan.json", "-o", "one.onnx", "-q"))
    ok(run(*OPTIMIZE, "--calib-data", "data.npz", "--plan-in", "plan.json", "-o", "two.onnx", "-q"))
    assert (folder / "one.onnx").read_bytes() == (folder / "two.onnx").read_bytes()


def test_plan_decides(run: Run, folder: Path) -> None:
    """An edited plan is obeyed, and its layers that say why they are left alone are."""
    ok(run(*WITH_DATA, "--plan-out", "plan.json", "--dry-run", "-q"))
    plan = json.loads((folder / "plan.json").read_text())
    entry = next(layer for layer in plan["layers"] if layer["name"] == "fc1")
    entry["kept"] = [list(range(10))]
    (folder / "plan.json").write_text(json.dumps(plan))
    ok(run(*OPTIMIZE, "--calib-data", "data.npz", "--plan-in", "plan.json", "--plan-out", "again.json", "-q"))
    again = {layer["name"]: layer for layer in json.loads((folder / "again.json").read_text())["layers"]}
    assert again["fc1"]["kept"] == [list(range(10))]
    assert "first" in again["fc0"]["reason"]


def test_external_data(run: Run, folder: Path) -> None:
    ok(run(*WITH_DATA, "-o", "one.onnx", "-q"))
    ok(run(*WITH_DATA, "-o", "big.onnx", "-q", "--save-as-external-data"))
    data = [path for path in folder.iterdir() if path.name.startswith("big.onnx.")]
    assert len(data) == 1
    assert data[0].suffix == ".data"
    loaded = model_file.load("big.onnx").whole().SerializeToString(deterministic=True)
    assert loaded == (folder / "one.onnx").read_bytes()
    np.testing.assert_array_equal(outputs("big.onnx", inputs()), outputs("one.onnx", inputs()))

    ok(run("optimize", "big.onnx", "--calib-data", "data.npz", "--density", "0.5", "-o", "again.onnx", "-q"))
    assert (folder / "again.onnx").read_bytes() == (folder / "one.onnx").read_bytes()

    arguments = (*WITH_DATA[:-1], "0.9", "-o", "big.onnx", "-q", "--force")
    ok(run(*arguments, "--save-as-external-data"))
    assert not data[0].exists()  # the old data went when the new pair was in place
    ok(run(*arguments))
    assert not [path for path in folder.iterdir() if path.name.startswith("big.onnx.")]


def test_model_too_large_for_one_file(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deftonnx.model_file.PROTOBUF_LIMIT", 1000)
    ok(run(*WITH_DATA, "-q"))
    assert [path for path in folder.iterdir() if path.suffix == ".data"]
    assert outputs("model.deft.onnx", inputs()).shape == (SAMPLES, 4)


@pytest.mark.parametrize("suffix", ["json", "html"])
def test_report(run: Run, folder: Path, suffix: str) -> None:
    printed = ok(run(*WITH_DATA, "--report", f"report.{suffix}", "--json")).stdout
    text = (folder / f"report.{suffix}").read_text(encoding="utf-8")
    if suffix == "json":
        assert json.loads(text) == json.loads(printed)
    else:
        assert text.startswith("<!doctype html>")
        assert "model.deft.onnx" in text


def test_multiply_adds_count_every_layer(run: Run, folder: Path) -> None:
    report = json.loads(ok(run(*OPTIMIZE, "--json")).stdout)
    assert report["before"]["macs"] == report["after"]["macs"] == 16 * 32 + 32 * 32 + 32 * 4
    options = ("--granularity", "element", "--no-absorb", "--json", "--force")
    report = json.loads(ok(run(*WITH_DATA, *options)).stdout)
    assert report["after"]["macs"] == 16 * 32 + 16 * 32 + 32 * 4


@pytest.mark.parametrize(("options", "code"), [((), 4), (("--calib-data", "data.npz"), 0)])
def test_fail_if_unchanged(run: Run, folder: Path, options: tuple[str, ...], code: int) -> None:
    result = run(*OPTIMIZE, *options, "--fail-if-unchanged", "-q")
    assert result.exit_code == code
    assert ("'model.onnx'" in result.stderr) is (code == 4)


# Models and data of other shapes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["1", "4", "100"])
def test_fixed_batch(run: Run, folder: Path, batch: str) -> None:
    onnx.save(small_model(batch), folder / "fixed.onnx")
    arguments = ("--calib-data", "data.npz", "--eval-data", "data.npz", "--density", "0.5", "--json")
    report = json.loads(ok(run("optimize", "fixed.onnx", *arguments)).stdout)
    assert report["accuracy"]["samples"] == max(SAMPLES, int(batch))
    assert report["after"]["macs"] < report["before"]["macs"]
    assert outputs("fixed.deft.onnx", inputs(int(batch))).shape == (int(batch), 4)


def test_several_inputs_and_integers(run: Run, folder: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (int64[N, T] ids, float[N, 8] side, bool[N, 1] flag) => (float[N, 4] y, int64[N, 1] best) {
            e = Gather (table, ids)
            axes = Constant <value_ints: ints = [1]> ()
            s = ReduceSum <keepdims: int = 0> (e, axes)
            a = MatMul (s, w0)
            j = Concat <axis: int = 1> (a, side)
            r = Relu (j)
            h = MatMul (r, w1)
            q = Relu (h)
            z = MatMul (q, w2)
            c = Cast <to: int = 1> (flag)
            y = Mul (z, c)
            best = ArgMax <axis: int = 1> (y)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("table", (10, 16)), ("w0", (16, 24)), ("w1", (32, 32)), ("w2", (32, 4))):
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, folder / "many.onnx")
    np.savez(
        folder / "many.npz",
        ids=rng.integers(0, 10, (200, 5)),
        side=rng.standard_normal((200, 8)).astype(np.float32),
        flag=np.ones((200, 1), bool),
        labels=rng.integers(0, 4, 200),
    )
    arguments = ("--calib-data", "many.npz", "--eval-data", "many.npz", "--density", "0.5", "--granularity", "element")
    report = json.loads(ok(run("optimize", "many.onnx", *arguments, "--json")).stdout)
    assert report["after"]["macs"] < report["before"]["macs"]
    assert report["accuracy"]["metric"] == "top1"
    ok(run("check", "many.deft.onnx", "--reference", "many.onnx", "--eval-data", "many.npz", "--metric", "cosine"))


def test_feeds_of_varying_length(run: Run, folder: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, T, 16] x) => (float[N, T, 4] y) {
            a = MatMul (x, w0)
            b = Relu (a)
            c = MatMul (b, w1)
            d = Relu (c)
            y = MatMul (d, w2)
        }"""
    )
    for serial, tensor in enumerate(t for t in small_model().graph.initializer if t.name.startswith("w")):
        model.graph.initializer.append(tensor)
        assert tensor.name == f"w{serial}"
    onnx.save(model, folder / "sequence.onnx")
    (folder / "feeds.py").write_text(
        "import numpy as np\n"
        "def calibration_data():\n"
        "    rng = np.random.default_rng(0)\n"
        "    for length in range(3, 43):\n"
        "        yield {'x': rng.standard_normal((2, length, 16)).astype(np.float32)}\n"
    )
    arguments = ("--calib-data", "feeds.py", "--eval-data", "feeds.py", "--density", "0.5", "--granularity", "element")
    report = json.loads(ok(run("optimize", "sequence.onnx", *arguments, "--json")).stdout)
    assert report["after"]["macs"] < report["before"]["macs"]


# inspect and check ---------------------------------------------------------------------------------------------------


def test_inspect(run: Run, folder: Path) -> None:
    layers = json.loads(ok(run("inspect", "model.onnx", "--json")).stdout)["layers"]
    assert [(x["name"], x["K"], x["N"]) for x in layers] == [("fc0", 16, 32), ("fc1", 32, 32), ("fc2", 32, 4)]
    assert [x["reason"] is None for x in layers] == [False, True, False]
    assert sum(x["share"] for x in layers) == pytest.approx(1)
    excluded = json.loads(ok(run("inspect", "model.onnx", "--json", "--nodes-to-exclude", "fc1")).stdout)["layers"]
    assert "fc1" in excluded[1]["reason"]


@pytest.mark.parametrize(
    ("limits", "passed"),
    [
        ((), True),
        (("--max-loss", "100"), True),
        (("--max-loss", "-101"), False),
        (("--metric", "rel-l2", "--max-loss", "0.9"), True),
        (("--metric", "rel-l2", "--max-loss", "1e-6"), False),
        (("--metric", "kl", "--max-loss", "1e-9"), False),
        (("--metric", "cosine", "--max-loss", "1e-9"), False),
        (("--rtol", "1e-6"), False),
        (("--atol", "1e-6"), False),
        (("--atol", "100"), True),
        (("--rtol", "1e-6", "--atol", "100"), True),
        (("--max-loss", "100", "--atol", "1e-6"), False),
    ],
)
def test_check(run: Run, folder: Path, limits: tuple[str, ...], passed: bool) -> None:
    ok(run(*WITH_DATA, "-q"))
    result = run("check", "model.deft.onnx", "--reference", "model.onnx", "--eval-data", "data.npz", *limits)
    assert result.exit_code == (0 if passed else 3), result.stderr
    assert "samples" in result.stdout
    assert ("'model.deft.onnx'" in result.stderr) is not passed


def test_check_of_a_model_with_itself(run: Run, folder: Path) -> None:
    arguments = ("--eval-data", "data.npz", "--max-loss", "0", "--rtol", "0", "--atol", "0", "--json")
    content = json.loads(ok(run("check", "model.onnx", "--reference", "model.onnx", *arguments)).stdout)
    assert content["passed"] is True
    assert content["largest_difference"] == 0


def test_labels_are_scored_by_sample(run: Run, folder: Path) -> None:
    x = inputs()
    np.savez(folder / "right.npz", x=x, labels=outputs("model.onnx", x).argmax(1)[:, None])
    arguments = ("check", "model.onnx", "--reference", "model.onnx", "--eval-data", "right.npz", "--json")
    assert json.loads(ok(run(*arguments)).stdout)["score"]["value"] == 100


def test_python_and_command_line_agree(run: Run, folder: Path) -> None:
    ok(run(*WITH_DATA, "-q"))
    result = deftonnx.optimize("model.onnx", calib_data="data.npz", density=0.5, measure=False)
    result.save("python.onnx")
    assert (folder / "python.onnx").read_bytes() == (folder / "model.deft.onnx").read_bytes()
    with pytest.raises(deftonnx.DeftError, match="never touched"):
        result.save("model.onnx")


@pytest.mark.parametrize("options", [("--granularity", "element"), ("--granularity", "channel"), ()], ids=" ".join)
def test_convolutions_are_idempotent_and_replayed(run: Run, folder: Path, options: tuple[str, ...]) -> None:
    """What is written with a local function, too."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
            a = Conv <pads: ints = [1, 1, 1, 1]> (x, w0)
            b = Relu (a)
            c = Conv <pads: ints = [1, 1, 1, 1]> (b, w1)
            d = Relu (c)
            y = Conv (d, w2)
        }"""
    )
    rng = np.random.default_rng(0)
    for serial, shape in enumerate(((16, 3, 3, 3), (16, 16, 3, 3), (4, 16, 3, 3))):
        weight = rng.standard_normal(shape).astype(np.float32) / 8
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"w{serial}"))
    onnx.save(model, folder / "conv.onnx")
    np.savez(folder / "images.npz", x=rng.standard_normal((32, 3, 8, 8)).astype(np.float32))
    arguments = ("--calib-data", "images.npz", "--density", "0.5", *options, "-q")
    ok(run("optimize", "conv.onnx", *arguments, "-o", "once.onnx", "--plan-out", "plan.json"))
    ok(run("optimize", "once.onnx", *arguments, "-o", "twice.onnx", "--plan-out", "again.json"))
    replay = ("--calib-data", "images.npz", "--plan-in", "plan.json", "-q")
    ok(run("optimize", "conv.onnx", *replay, "-o", "replayed.onnx"))
    once = (folder / "once.onnx").read_bytes()
    assert (folder / "twice.onnx").read_bytes() == once
    assert (folder / "replayed.onnx").read_bytes() == once
    assert (folder / "again.json").read_text() == (folder / "plan.json").read_text()
    assert any(f.name == "KeptConv" for f in onnx.load("once.onnx").functions) is ("element" in options)
