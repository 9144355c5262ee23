"""A model whose large weights are arrays: read, written, and run as the message it was."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from deftonnx import evaluation, model_file
from deftonnx.errors import UnsupportedError
from deftonnx.model import LARGE, Model, apart, byte_size, is_apart, read_apart, serialised
from deftonnx.rewrite.normalise import export_model, import_model
from deftonnx.sessions import Passing, lasting

RNG = np.random.default_rng(0)
SHAPE = (64, 64)


def weight(name: str, kind: type = np.float32, shape: tuple[int, ...] = SHAPE) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(kind), name)


def proto() -> onnx.ModelProto:
    """Weights of all sorts: large and small, in bfloat16, in fields of their own type, documented, inside an If."""
    typed = helper.make_tensor("typed", TensorProto.FLOAT, SHAPE, RNG.standard_normal(SHAPE).flatten())
    documented = weight("documented")
    documented.doc_string = "what it is"
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["c", own.name], ["r"])],
            "branch",
            [],
            [helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", SHAPE[1]])],
            [own],
        )
        for own in (weight("inside"), weight("other"))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("MatMul", ["a", "typed"], ["b"]),
        helper.make_node("Cast", ["narrow"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["b", "wide"], ["d"]),
        helper.make_node("Gemm", ["d", "documented", "bias"], ["c"]),
        helper.make_node("If", ["which"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    graph = helper.make_graph(
        nodes,
        "all sorts",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", SHAPE[0]]),
            helper.make_tensor_value_info("which", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", SHAPE[1]])],
        [weight("W"), typed, weight("narrow", ml_dtypes.bfloat16), documented, weight("bias", shape=SHAPE[1:])],
        doc_string="behind the weights",
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="test")


FEED = {"x": RNG.standard_normal((3, SHAPE[0])).astype(np.float32), "which": np.array(True)}


@pytest.mark.parametrize("from_file", [False, True])
def test_parts_make_the_same_message(from_file: bool, tmp_path: Path) -> None:
    whole = proto()
    (file := tmp_path / "model.onnx").write_bytes(content := whole.SerializeToString(deterministic=True))
    parts = read_apart(file) if from_file else apart(whole)
    assert parts.weights.keys() == {"W", "narrow", "documented"}
    assert all(array.nbytes > LARGE for array in parts.weights.values())
    assert parts.shell.ByteSize() < len(content) - sum(array.nbytes for array in parts.weights.values()) + 500
    assert b"".join(serialised(parts)) == content
    assert byte_size(parts) == len(content)
    assert parts.whole() == whole == proto_like(whole)


def proto_like(whole: onnx.ModelProto) -> onnx.ModelProto:
    return apart(whole).whole()


@pytest.mark.parametrize("external", [False, True])
def test_files_are_read_as_they_were_written(external: bool, tmp_path: Path) -> None:
    whole = proto()
    model_file.save(apart(whole), tmp_path / "model.onnx", external)
    loaded = model_file.load(tmp_path / "model.onnx")
    assert loaded.whole() == whole
    assert "W" in loaded.weights


def test_without_values_only_the_shell_is_read(tmp_path: Path) -> None:
    (file := tmp_path / "model.onnx").write_bytes(proto().SerializeToString())
    parts = read_apart(file, values=False)
    assert not parts.weights
    assert [t.name for t in parts.shell.graph.initializer if is_apart(t)] == ["W", "narrow", "documented"]


@pytest.mark.parametrize("kept", [0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path) -> None:
    content = proto().SerializeToString()
    (file := tmp_path / "model.onnx").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnsupportedError, match="truncated"):
        model_file.load(file)


def test_both_sessions_compute_what_the_message_does() -> None:
    whole = proto()
    (want,) = ort.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, FEED)
    parts = apart(whole)
    passing = Passing(parts)
    assert [value.name for value in passing.get_inputs()] == ["x", "which"]
    for session in (passing, Passing(parts, observing=True), lasting(parts)):
        np.testing.assert_allclose(evaluation.run(session, [FEED])["y"], want, rtol=1e-4, atol=1e-4)


def test_a_session_that_cannot_take_weights_as_inputs_gets_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> Passing:
        raise RuntimeError("the weight has to be constant")

    want = evaluation.outputs(proto_like(whole := proto()), [FEED])["y"]
    monkeypatch.setattr(evaluation, "Passing", refused)
    np.testing.assert_allclose(evaluation.outputs(whole, [FEED])["y"], want, rtol=1e-4, atol=1e-4)


def test_a_graph_keeps_weights_apart() -> None:
    whole = proto()
    for model in (whole, apart(whole)):
        graph = import_model(model)
        exported = export_model(graph, whole)
        assert isinstance(exported, Model)
        assert exported.weights.keys() >= {"W", "narrow", "documented"}
        assert all(not t.raw_data for t in exported.shell.graph.initializer if t.name in exported.weights)
        again = export_model(graph, whole)
        assert again.weights["W"] is exported.weights["W"]
        for name, want in evaluation.outputs(whole, [FEED]).items():
            np.testing.assert_allclose(evaluation.outputs(exported, [FEED])[name], want, rtol=1e-4, atol=1e-4)


def test_an_old_output_keeps_the_data_of_the_input_that_was_copied_from_it(tmp_path: Path) -> None:
    old, new, copy = proto(), proto(), tmp_path / "in.onnx"  # of other random weights
    model_file.save(apart(old), tmp_path / "out.onnx", external_data=True)
    copy.write_bytes((tmp_path / "out.onnx").read_bytes())
    model_file.save(apart(new), tmp_path / "out.onnx", external_data=True, source=copy)
    assert onnx.load(copy).graph.initializer[0].raw_data == old.graph.initializer[0].raw_data
    assert len(list(tmp_path.glob("out.onnx.*.data"))) == 2
    model_file.save(apart(new), tmp_path / "out.onnx")  # says nothing of a source
    assert len(list(tmp_path.glob("out.onnx.*.data"))) == 1


def test_weights_that_nothing_reads_are_no_obstacle() -> None:
    whole = proto()
    (want,) = lasting(apart(whole)).run(None, FEED)
    whole.graph.initializer.append(weight("idle"))
    parts = apart(whole)
    assert "idle" in parts.weights
    np.testing.assert_array_equal(lasting(parts).run(None, FEED)[0], want)
