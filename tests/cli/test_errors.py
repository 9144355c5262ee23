"""Bad input: one clear sentence on stderr that names the file, node or option, the documented exit code, no traceback,
nothing on stdout, and every file as it was."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper, parser
from small_files import files, inputs, small_model

from deftonnx import model_file

Run = Callable[..., Result]

OPTIMIZE = ("optimize", "model.onnx")
WITH_DATA = (*OPTIMIZE, "--calib-data", "data.npz")


def refuse(run: Run, folder: Path, arguments: tuple[object, ...], code: int, *words: str) -> None:
    """Run the command line and hold it to the rules above."""
    before = files(folder)
    result = run(*arguments)
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    if lines[0].startswith("Usage: "):  # click's own three lines
        assert lines[-1].startswith("Error: ")
    else:
        assert len(lines) == 1
        assert lines[0].startswith("deftonnx: ")
        assert "internal error" not in lines[0]
    for word in words:
        assert word in lines[-1]
    assert files(folder) == before


# Models that cannot be used ------------------------------------------------------------------------------------------


def with_opset(version: int) -> bytes:
    model = small_model()
    model.opset_import[0].version = version
    return model.SerializeToString()


def with_operator(op_type: str) -> bytes:
    model = small_model()
    model.graph.node[1].op_type = op_type
    return model.SerializeToString()


def without_linear_layers() -> bytes:
    return parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }'
    ).SerializeToString()


def with_weight(**changes: object) -> bytes:
    model = small_model()
    weight = model.graph.initializer[2]
    fields = {"dims": list(weight.dims), "data_type": weight.data_type, "raw_data": weight.raw_data, **changes}
    weight.CopyFrom(onnx.TensorProto(name=weight.name, **fields))
    return model.SerializeToString()


@pytest.mark.parametrize("command", ["optimize", "inspect", "check"])
@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        pytest.param(None, 2, ["does not exist"], id="missing"),
        pytest.param(b"", 5, ["not an ONNX model"], id="empty"),
        pytest.param(b"# Not a model\n" * 99, 5, ["not an ONNX model"], id="text"),
        pytest.param(bytes(range(256)) * 40, 5, ["not an ONNX model"], id="noise"),
        pytest.param(with_opset(6), 5, ["opset 6", "7 to"], id="opset too old"),
        pytest.param(with_opset(999), 5, ["opset 999", "7 to"], id="opset too new"),
        pytest.param(with_weight(raw_data=bytes(4092)), 5, ["'w1' has 4092 bytes", "needs 4096"], id="short weight"),
        pytest.param(with_weight(dims=[2**40, 32]), 5, ["'w1'", "[1099511627776, 32]"], id="huge weight"),
        pytest.param(with_weight(dims=[-32, 32]), 5, ["'w1'", "[-32, 32]"], id="negative shape"),
        pytest.param(with_weight(data_type=99), 5, ["'w1'", "type 99"], id="unknown type"),
    ],
)
def test_model_file(run: Run, folder: Path, command: str, content: bytes | None, code: int, words: list[str]) -> None:
    if content is not None:
        (folder / "bad.onnx").write_bytes(content)
    rest = ("--reference", "model.onnx", "--eval-data", "data.npz") if command == "check" else ()
    refuse(run, folder, (command, "bad.onnx", *rest), code, "'bad.onnx'", *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(without_linear_layers(), ["no MatMul, Gemm or Conv"], id="no linear layers"),
        pytest.param(with_operator("NoSuchOperator"), ["ONNX Runtime cannot load", "NoSuchOperator"], id="unknown op"),
    ],
)
def test_model_that_cannot_be_worked_on(run: Run, folder: Path, content: bytes, words: list[str]) -> None:
    (folder / "bad.onnx").write_bytes(content)
    refuse(run, folder, ("optimize", "bad.onnx"), 5, "'bad.onnx'", *words)


@pytest.mark.parametrize("command", ["optimize", "inspect"])
def test_a_cycle(run: Run, folder: Path, command: str) -> None:
    model = small_model()
    model.graph.node[0].input[0] = "d"
    onnx.save(model, folder / "cycle.onnx")
    refuse(run, folder, (command, "cycle.onnx"), 5, "'cycle.onnx'")


@pytest.mark.parametrize("command", ["optimize", "inspect"])
def test_a_function_of_the_users_own_under_a_name_of_ours(run: Run, folder: Path, command: str) -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "ai.deftonnx": 1]>
    g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}> {
        [twice] h = ai.deftonnx.DeftGemm (x, w)
        y = MatMul (h, w)
    }
    <domain: "ai.deftonnx", opset_import: ["": 17]> DeftGemm (a, b) => (c) { c = MatMul (a, b) }"""
    onnx.save(parser.parse_model(text), folder / "own.onnx")
    refuse(run, folder, (command, "own.onnx"), 2, "'twice' (DeftGemm) lacks the attribute")


def test_model_is_a_folder(run: Run, folder: Path) -> None:
    refuse(run, folder, ("optimize", "."), 2, "'.' is not a file")


def test_truncated_model(run: Run, folder: Path) -> None:
    whole = (folder / "model.onnx").read_bytes()
    end_of_graph = len(whole) - len(small_model().opset_import[0].SerializeToString()) - 2
    for length in [*range(0, 200, 7), *range(200, end_of_graph, 499), end_of_graph]:
        (folder / "bad.onnx").write_bytes(whole[:length])
        refuse(run, folder, ("optimize", "bad.onnx"), 5, "'bad.onnx'", "not an ONNX model")


def test_damaged_model_gives_no_traceback(run: Run, folder: Path) -> None:
    whole = bytearray((folder / "model.onnx").read_bytes())
    rng = np.random.default_rng(0)
    outcomes = set()
    for position in rng.integers(0, 400, 60):  # the nodes come first in the file
        bad = whole.copy()
        bad[position] ^= 1 << rng.integers(8)
        (folder / "bad.onnx").write_bytes(bad)
        result = run("optimize", "bad.onnx", "--force", "-q")
        assert result.exit_code in (0, 2, 5), result.stderr
        assert "Traceback" not in result.stderr
        outcomes.add(result.exit_code)
    assert 5 in outcomes


def save_with_external_data(folder: Path) -> None:
    onnx.save(small_model(), folder / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)


@pytest.mark.parametrize(
    ("size", "words"), [(None, ["'big.data'", "missing"]), (0, ["'big.data'"]), (1000, ["'big.data'"])]
)
def test_external_data(run: Run, folder: Path, size: int | None, words: list[str]) -> None:
    save_with_external_data(folder)
    data = folder / "big.data"
    if size is None:
        data.unlink()
    else:
        os.truncate(data, size)
    refuse(run, folder, ("optimize", "big.onnx"), 5, "'big.onnx'", *words)


def test_the_output_may_not_be_the_external_data(run: Run, folder: Path) -> None:
    save_with_external_data(folder)
    refuse(run, folder, ("optimize", "big.onnx", "-o", "big.data", "--force"), 2, "'big.data'", "never touched")


def test_a_weight_that_protobuf_cannot_hold(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "WEIGHT_LIMIT", 4000)
    save_with_external_data(folder)
    refuse(run, folder, ("optimize", "big.onnx"), 5, "'big.onnx' cannot be optimised", "'w1' alone has")


def test_external_data_without_lengths(run: Run, folder: Path) -> None:
    save_with_external_data(folder)
    model = onnx.load(folder / "big.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        fields = [(entry.key, entry.value) for entry in tensor.external_data if entry.key != "length"]
        del tensor.external_data[:]
        for key, value in fields:
            tensor.external_data.add(key=key, value=value)
    (folder / "big.onnx").write_bytes(model.SerializeToString())
    assert run("optimize", "big.onnx", "-q").exit_code == 0


def test_external_data_outside_the_folder_is_not_read(run: Run, folder: Path) -> None:
    save_with_external_data(folder)
    inner = folder / "inner"
    inner.mkdir()
    model = onnx.load(folder / "big.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../big.data"
    (inner / "evil.onnx").write_bytes(model.SerializeToString())
    refuse(run, folder, ("optimize", "inner/evil.onnx"), 5, "inner/evil.onnx", "../big.data")


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--density", "0"], ["--density 0"]),
        (["--density", "-0.5"], ["--density -0.5"]),
        (["--density", "1.01"], ["--density 1.01"]),
        (["--density", "nan"], ["--density nan"]),
        (["--density", "half"], ["--density", "'half'"]),
        (["--alpha", "1.5"], ["--alpha 1.5"]),
        (["--alpha", "nan"], ["--alpha nan"]),
        (["--alpha", "0.5", "--density", "0.5"], ["--density", "--alpha"]),
        (["--alpha", "0.5", "--criterion", "obs"], ["--alpha", "obs"]),
        (["--criterion", "taylor"], ["--criterion", "taylor"]),
        (["--refit", "adam"], ["--refit", "adam"]),
        (["--format", "int8"], ["--format 'int8'", "deft8:1", "deft8:auto"]),
        (["--format", "deft8:9"], ["--format 'deft8:9'"]),
        (["--format", "half", "--portable"], ["--format half", "--portable"]),
        (["--io-types", "float8"], ["--io-types", "float16"]),
        (["--granularity", "row"], ["granularity 'row'", "channel"]),
        (["--granularity", "block:24"], ["block:24", "block:16"]),
        (["--granularity", "element:4"], ["element:4"]),
        (["--target", "tpu"], ["--target", "tpu"]),
        (["--gpu", "h900"], ["--gpu h900", "h100"]),
        (["--target", "cuda", "--gpu", "h900"], ["--gpu h900", "h100"]),
        (["--nodes-to-exclude", "("], ["--nodes-to-exclude '('", "regular expression"]),
        (["--calib-samples", "0"], ["--calib-samples 0"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--metric", "top5"], ["metric 'top5'", "top1"]),
        (["--metric", "no_such_module:f"], ["metric 'no_such_module:f'", "no_such_module"]),
        (["--metric", "math:no_such_function"], ["metric 'math:no_such_function'"]),
        (["--metric", "math:pi"], ["metric 'math:pi'", "not a function"]),
        (["--metric", ":f"], ["metric ':f'"]),
        (["--report", "report.pdf"], ["--report 'report.pdf'", ".html"]),
        (["--report", "missing/report.html"], ["'missing'"]),
        (["--report", "model.onnx.json", "--plan-out", "model.onnx.json"], ["--report", "--plan-out"]),
        (["--plan-out", "model.onnx"], ["--plan-out 'model.onnx'", "never touched"]),
        (["--plan-out", "data.npz"], ["--plan-out 'data.npz'", "never touched"]),
        (["-o", "model.onnx"], ["'model.onnx'", "never touched"]),
        (["-o", "./../{folder}/model.onnx", "--force"], ["never touched"]),
        (["-o", "missing/out.onnx"], ["'missing/out.onnx'", "does not exist"]),
        (["-o", "."], ["'.' is a folder"]),
        (["-o", "/dev/null", "--force"], ["'/dev/null'", "not a file"]),
        (["--plan-out", "/dev/null"], ["'/dev/null'", "not a file"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["--calib-data", "nowhere.npz"], ["calibration data 'nowhere.npz' does not exist"]),
        (["--eval-data", "nowhere.npz"], ["evaluation data 'nowhere.npz' does not exist"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_option(run: Run, folder: Path, options: list[str], words: list[str]) -> None:
    refuse(run, folder, (*WITH_DATA, *(o.format(folder=folder.name) for o in options)), 2, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--criterion", "obs"], ["obs", "--calib-data"]),
        (["--refit", "least-squares"], ["--calib-data"]),
        (["--criterion", "correlation", "--refit", "least-squares"], ["least-squares", "--calib-data"]),
        (["--density", "0.5"], ["--calib-data"]),
    ],
)
def test_option_that_needs_data(run: Run, folder: Path, options: list[str], words: list[str]) -> None:
    refuse(run, folder, (*OPTIMIZE, *options), 2, *words)


def test_existing_output_needs_force(run: Run, folder: Path) -> None:
    (folder / "model.deft.onnx").write_bytes(b"precious")
    refuse(run, folder, WITH_DATA, 2, "'model.deft.onnx' exists", "--force")
    assert run(*WITH_DATA, "--force").exit_code == 0
    assert (folder / "model.deft.onnx").read_bytes() != b"precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_cannot_be_written_to(run: Run, folder: Path) -> None:
    locked = folder / "locked"
    locked.mkdir(mode=0o500)
    refuse(run, folder, (*WITH_DATA, "-o", "locked/out.onnx"), 2, "locked", "cannot be written")


# Data ----------------------------------------------------------------------------------------------------------------


def truncated(folder: Path) -> None:
    whole = (folder / "data.npz").read_bytes()
    (folder / "bad.npz").write_bytes(whole[: len(whole) // 2])


def damaged_inside(folder: Path) -> None:
    whole = bytearray((folder / "data.npz").read_bytes())
    whole[500] ^= 255
    (folder / "bad.npz").write_bytes(whole)


def holding(**arrays: object) -> Callable[[Path], None]:
    return lambda folder: np.savez(folder / "bad.npz", **arrays)  # type: ignore[arg-type]


def not_finite(value: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    x = inputs()
    x[3, 5] = value
    return x


@pytest.mark.parametrize("option", ["--calib-data", "--eval-data"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(holding(image=inputs()), ["'image'", "'x'"], id="wrong name"),
        pytest.param(holding(x=inputs(), z=inputs()), ["'z'"], id="one array too many"),
        pytest.param(holding(labels=np.zeros(3)), ["no samples"], id="labels only"),
        pytest.param(holding(x=inputs().astype(np.float64)), ["'x'", "float64", "float32"], id="dtype"),
        pytest.param(holding(x=inputs()[:, :5]), ["'x'", "[64, 5]", "16"], id="shape"),
        pytest.param(holding(x=inputs()[0]), ["'x'", "[16]"], id="no sample axis"),
        pytest.param(holding(x=np.float32(1)), ["'x'", "[]"], id="scalar"),
        pytest.param(holding(x=not_finite(np.nan)), ["'x'", "NaN"], id="nan"),
        pytest.param(holding(x=not_finite(np.inf)), ["'x'", "infinite"], id="inf"),
        pytest.param(holding(x=inputs()[:0]), ["no samples"], id="no samples"),
        pytest.param(holding(), ["no samples"], id="no arrays"),
        pytest.param(holding(x=np.array([{}, []], dtype=object)), ["'bad.npz'", "Python objects"], id="objects"),
        pytest.param(holding(x=inputs(), labels=np.arange(7)), ["64 samples", "7 labels"], id="too few labels"),
        pytest.param(holding(x=inputs(), labels=np.full(64, "cat")), ["labels"], id="labels that are text"),
        pytest.param(holding(x=inputs(), labels=np.full(64, 0.5)), ["labels"], id="labels that are no classes"),
        pytest.param(truncated, ["'bad.npz'", "damaged"], id="truncated"),
        pytest.param(damaged_inside, ["'bad.npz'", "damaged"], id="damaged"),
        pytest.param(lambda folder: (folder / "bad.npz").write_bytes(b""), ["'bad.npz'"], id="empty"),
        pytest.param(lambda folder: (folder / "bad.npz").write_text("x, y\n1, 2\n"), ["'bad.npz'"], id="text"),
        pytest.param(lambda folder: (folder / "bad.npz").mkdir(), ["'bad.npz'", ".npz files"], id="empty folder"),
    ],
)
def test_data(run: Run, folder: Path, option: str, make: Callable[[Path], None], words: list[str]) -> None:
    make(folder)
    refuse(run, folder, (*OPTIMIZE, option, "bad.npz"), 2, *words)


@pytest.mark.parametrize("name", ["data.csv", "data"])
def test_data_of_an_unknown_kind(run: Run, folder: Path, name: str) -> None:
    (folder / name).write_text("1, 2\n")
    refuse(run, folder, (*OPTIMIZE, "--calib-data", name), 2, f"'{name}'", ".npz")


@pytest.mark.parametrize(
    ("script", "function", "words"),
    [
        ("raise RuntimeError('no disk')", "", ["RuntimeError", "no disk"]),
        ("import sys; sys.exit(0)", "", ["SystemExit"]),
        ("def calibration_data(:", "", ["SyntaxError"]),
        ("import no_such_module", "", ["no_such_module"]),
        ("", "", ["calibration_data"]),
        ("def f(): pass", "g", ["'g'"]),
        ("def f(): raise ValueError", "f", ["ValueError"]),
        ("f = 5", "f", ["int"]),
        ("def f(): return 5", "f", ["int", "iterable"]),
        ("def f(): yield 5", "f", ["int", "dict"]),
        ("def f(): yield {'x': 'text'}", "f", ["'x'", "type"]),
        ("def f(): yield {'x': [[1.0], [2.0, 3.0]]}", "f", ["'x'", "not an array"]),
        ("def f(): yield {}", "f", ["'x'"]),
        ("def f(): return []", "f", ["no samples"]),
        ("def f():\n yield {'y': 1}\n raise ValueError('late')", "f", ["late"]),
    ],
)
def test_script(run: Run, folder: Path, script: str, function: str, words: list[str]) -> None:
    (folder / "feeds.py").write_text(script)
    source = f"feeds.py:{function}" if function else "feeds.py"
    refuse(run, folder, (*OPTIMIZE, "--calib-data", source), 2, "feeds.py", *words)


def test_missing_script(run: Run, folder: Path) -> None:
    refuse(run, folder, (*OPTIMIZE, "--calib-data", "nowhere.py:f"), 2, "'nowhere.py:f' does not exist")


def test_random_data_for_an_input_without_shape(run: Run, folder: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, T, 4] x) => (float[N, T, 2] y)
        <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul (x, w) }"""
    )
    onnx.save(model, folder / "dynamic.onnx")
    refuse(run, folder, ("optimize", "dynamic.onnx", "--calib-data", "random"), 2, "'x'", "fixed shapes")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -1
    onnx.save(model, folder / "negative.onnx")
    refuse(run, folder, ("optimize", "negative.onnx", "--calib-data", "random"), 2, "'x'", "fixed shapes")


def with_nan(number: int) -> onnx.ModelProto:
    """The small model with a NaN in its initializer of that number: w0, b0, w1 ..."""
    model = small_model()
    tensor = model.graph.initializer[number]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def test_a_weight_that_is_not_finite_is_left_alone(run: Run, folder: Path) -> None:
    onnx.save(with_nan(2), folder / "nan.onnx")
    result = run("optimize", "nan.onnx", "--calib-data", "data.npz", "--density", "0.5", "--json")
    assert result.exit_code == 0
    reasons = {entry["name"]: entry["reason"] for entry in json.loads(result.stdout)["left_alone"]}
    assert reasons["fc1"] == "its weight or bias holds NaN or infinite values"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--calib-data", "data.npz", "--density", "0.5"], ["'fc1'", "NaN", "--nodes-to-exclude"]),
        (["--criterion", "magnitude", "--refit", "none", "--density", "0.5"], ["'y'", "NaN"]),
    ],
)
def test_activations_that_are_not_finite(run: Run, folder: Path, options: list[str], words: list[str]) -> None:
    onnx.save(with_nan(0), folder / "nan.onnx")
    refuse(run, folder, ("optimize", "nan.onnx", *options), 5, *words)


def test_metric_that_fails(run: Run, folder: Path) -> None:
    (folder / "my_metrics.py").write_text("def broken(outputs, labels):\n    raise KeyError('logits')\n")
    options = ("--eval-data", "data.npz", "--metric", "my_metrics:broken")
    refuse(run, folder, (*WITH_DATA, *options), 2, "my_metrics:broken", "logits")


# Plans ---------------------------------------------------------------------------------------------------------------


def plan(**changes: object) -> str:
    layer = {"name": "fc1", "op": "Gemm", "granularity": "element", "density": 0.5, **changes}
    return json.dumps({"format": "deftonnx-plan", "version": 1, "settings": {}, "layers": [layer]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", ["not JSON"]),
        ("", ["not JSON"]),
        ("[]", ["not a DeftONNX plan"]),
        ('{"format": "deftonnx-plan", "version": 2, "layers": []}', ["version 2"]),
        ('{"format": "deftonnx-plan", "version": 1}', ["layers"]),
        ('{"format": "deftonnx-plan", "version": 1, "layers": [5]}', ["layer"]),
        ('{"format": "deftonnx-plan", "version": 1, "layers": [], "settings": {"density": "x"}}', ["settings"]),
        ('{"format": "deftonnx-plan", "version": 1, "layers": [], "settings": {"pace": 1}}', ["pace"]),
        (plan(name="conv9"), ["'conv9'"]),
        (plan(name=None), ["'name'"]),
        (plan(colour="red"), ["colour"]),
        (plan(density=0), ["'fc1'", "density 0"]),
        (plan(density="half"), ["'fc1'", "'density'"]),
        (plan(granularity="row"), ["granularity 'row'"]),
        (plan(criterion="taylor"), ["'fc1'", "'taylor'"]),
        (plan(refit="adam"), ["'fc1'", "'adam'"]),
        (plan(kept=[["a"]]), ["'fc1'"]),
        (plan(kept="all"), ["'fc1'"]),
        (plan(kept=[[0, 99]]), ["'fc1'", "31"]),
        (plan(kept=[[-1]]), ["'fc1'"]),
        (plan(kept=[[]]), ["'fc1'"]),
        (plan(kept=[[0], [1]]), ["'fc1'"]),
    ],
)
def test_plan(run: Run, folder: Path, text: str, words: list[str]) -> None:
    (folder / "plan.json").write_text(text)
    refuse(run, folder, (*WITH_DATA, "--plan-in", "plan.json"), 2, *words)


def test_missing_plan(run: Run, folder: Path) -> None:
    refuse(run, folder, (*WITH_DATA, "--plan-in", "nowhere.json"), 2, "plan 'nowhere.json'", "No such file")


# check ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-loss", "nan"], ["--max-loss"]),
        (["--rtol", "-1"], ["--rtol"]),
        (["--atol", "inf"], ["--atol"]),
        (["--metric", "f1"], ["metric 'f1'"]),
    ],
)
def test_check_option(run: Run, folder: Path, options: list[str], words: list[str]) -> None:
    arguments = ("check", "model.onnx", "--reference", "model.onnx", "--eval-data", "data.npz", *options)
    refuse(run, folder, arguments, 2, *words)


@pytest.mark.parametrize(("side", "name"), [("input", "x"), ("output", "y")])
def test_check_of_models_that_do_not_match(run: Run, folder: Path, side: str, name: str) -> None:
    model = small_model()
    getattr(model.graph, side)[0].name = "other"
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if n == name else n for n in names]
    onnx.save(model, folder / "other.onnx")
    arguments = ("check", "other.onnx", "--reference", "model.onnx", "--eval-data", "data.npz")
    refuse(run, folder, arguments, 2, "other" if side == "input" else "'y'")


def test_check_of_outputs_without_classes(run: Run, folder: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 16] x) => (float[N, 0] y) { y = MatMul (x, w) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((16, 0), np.float32), "w"))
    onnx.save(model, folder / "empty.onnx")
    refuse(run, folder, ("check", "empty.onnx", "--reference", "empty.onnx", "--eval-data", "data.npz"), 2, "top1")


# Failing writes ------------------------------------------------------------------------------------------------------

RUN_WITH_LIMIT = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from deftonnx.cli.main import main
main()
"""


@pytest.mark.parametrize(
    "more", [[], ["--save-as-external-data"], ["--plan-out", "plan.json", "--report", "report.html"]]
)
@pytest.mark.parametrize("limit", [100, 700, 4000])
def test_disk_full(folder: Path, run: Run, limit: int, more: list[str]) -> None:
    """A limit on the size of files is the full disk here; the old outputs must survive, data file included."""
    assert run(*WITH_DATA, "--density", "0.9", *more).exit_code == 0
    before = files(folder)
    arguments = (*WITH_DATA, "--density", "0.5", "--force", "-q", *more)
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITH_LIMIT, str(limit), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("deftonnx: cannot write '")
    assert len(done.stderr.splitlines()) == 1
    assert files(folder) == before
    onnx.load(folder / "model.deft.onnx")


@pytest.mark.parametrize("external", [[], ["--save-as-external-data"]])
@pytest.mark.parametrize("call", range(4))
def test_failure_at_every_step_of_a_write(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, call: int, external: list[str]
) -> None:
    """Each fsync and rename in turn reports a full disk."""
    assert run(*WITH_DATA, "--density", "0.9", *external).exit_code == 0
    before = files(folder)
    calls = []

    def failing(original: Callable[..., None]) -> Callable[..., None]:
        def step(*arguments: object) -> None:
            calls.append(original)
            if len(calls) == call + 1:
                raise OSError(28, "No space left on device")
            original(*arguments)

        return step

    monkeypatch.setattr(model_file.os, "fsync", failing(os.fsync))
    monkeypatch.setattr(model_file.os, "replace", failing(os.replace))
    result = run(*WITH_DATA, "--density", "0.5", "--force", "-q", *external)
    if call < (4 if external else 2):
        assert result.exit_code == 1
        assert "No space left on device" in result.stderr
        assert files(folder) == before
    else:
        assert result.exit_code == 0
        assert files(folder) != before


# Interruption and surprises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["deftonnx.elimination.sequential.eliminate", "deftonnx.model_file.os.fsync"])
def test_interrupt(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    refuse(run, folder, (*WITH_DATA, "--save-as-external-data"), 130, "interrupted")


def test_interrupt_by_signal(folder: Path) -> None:
    (folder / "slow.py").write_text(
        "import time\ndef calibration_data():\n    print('here', flush=True)\n    time.sleep(60)"
    )
    program = "from deftonnx.cli.main import main; main()"
    command = [sys.executable, "-c", program, *OPTIMIZE, "--calib-data", "slow.py"]
    before = files(folder)
    # a shell's background jobs, and so perhaps this test, ignore the signal
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    assert process.stderr is not None
    assert process.stderr.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert files(folder) == before


def test_unforeseen_error_is_one_sentence(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("a bug\nwith details")

    monkeypatch.setattr("deftonnx.elimination.sequential.eliminate", fail)
    result = run(*WITH_DATA)
    assert result.exit_code == 1
    assert result.stderr.startswith("deftonnx: internal error, please report it: ValueError: a bug (")
    assert len(result.stderr.splitlines()) == 1
    monkeypatch.setenv("DEFTONNX_DEBUG", "1")
    assert isinstance(run(*WITH_DATA).exception, ValueError)


def test_closed_pipe_is_quiet(folder: Path) -> None:
    command = f"{sys.executable} -c 'from deftonnx.cli.main import main; main()' inspect model.onnx --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_exit_codes_are_documented(run: Run) -> None:
    text = " ".join(run("--help").stdout.split())
    for code, meaning in (
        (0, "ok"),
        (2, "unusable"),
        (3, "accuracy budget missed"),
        (4, "nothing improved"),
        (5, "unsupported"),
    ):
        assert f"{code} {meaning}" in text


def test_a_library_that_was_not_built(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deftonnx.runtime.library.__file__", str(folder / "library.py"))
    refuse(run, folder, ("lib-path",), 5, "was not built")
