"""`deftonnx doctor`: what it finds here, and what it says where there is nothing to find."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from gemm_model import gemm_model
from mlp_model import Chain
from onnx import TensorProto, helper, numpy_helper, parser

from deftonnx.formats import pack_weight
from deftonnx.formats.conv_function import Window, attach_conv_functions, conv_attributes, conv_node
from deftonnx.formats.gemm_function import weight_tensors
from deftonnx.runtime import cuda, library
from deftonnx.runtime.manifest import read_manifest
from deftonnx.version import __version__


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "obstacle", lambda: "no GPU in this test")
    monkeypatch.setattr(cuda, "devices", list)
    monkeypatch.setattr(cuda, "driver_version", lambda: None)


@pytest.fixture
def packed(folder):
    """packed.onnx: X (batch, tokens, 4096) and a DeftGemm."""
    X = np.zeros((4, 7, 4096), np.float16)
    model = gemm_model(X, pack_weight(np.zeros((4096, 512), np.float32), "half"), np.zeros(512, np.float32))
    for axis, name in enumerate(("batch", "tokens")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(model, folder / "packed.onnx")


@pytest.fixture
def built(monkeypatch, operator_library):
    """The library with kernels for sm_90."""
    if 90 not in read_manifest(operator_library).kernels:
        pytest.skip("the library was built without kernels for sm_90")
    monkeypatch.setenv("DEFTONNX_TUNING", "")


def examine(run, *arguments):
    result = run("doctor", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_machine(run, folder):
    content = examine(run)
    assert content["environment"]["onnxruntime"] == onnxruntime.__version__
    assert content["providers"]["CPUExecutionProvider"] == {"usable": True, "reason": None}
    if cuda.PROVIDER in content["providers"]:
        assert content["providers"][cuda.PROVIDER] == {"usable": False, "reason": "no GPU in this test"}
    assert set(content["cuda_libraries"]) == set(cuda.LIBRARIES)
    assert content["gpu"] is None
    text = run("doctor").stdout
    for word in (__version__, "NVIDIA driver", "none", "operator library"):
        assert word in text


def test_without_the_library(run, folder, packed, monkeypatch):
    monkeypatch.setattr(library, "__file__", str(folder / "library.py"))
    content = examine(run, "packed.onnx", "--gpu", "h200")
    assert content["library"]["path"] is None
    assert "was not built" in content["library"]["problem"]
    assert content["model"]["gemms"][0]["reason"] == "the operator library was not built"
    assert "was not built" in run("doctor", "packed.onnx").stdout


def test_a_file_that_is_no_library(run, folder, monkeypatch):
    monkeypatch.setattr(library, "__file__", str(folder / "library.py"))
    (folder / "libdeftonnx_ops.so").write_bytes(b"no library")
    assert "not an operator library" in examine(run)["library"]["problem"]


@pytest.fixture
def convolutions(folder):
    """convolutions.onnx: X (batch, 14, 14, 64), a DeftConv and after it one of stride 2."""
    window = Window.of((3, 3), pads=(1, 1, 1, 1))
    nodes, tensors = [], []
    for i, (channels, strides) in enumerate(((64, (1, 1)), (128, (2, 2)))):
        packed = pack_weight(np.zeros((9 * channels, 128), np.float32), "half")
        tensors += [*weight_tensors(packed, f"W{i}")]
        attributes = conv_attributes(
            packed, replace(window, strides=strides), channels, output_type=TensorProto.FLOAT16
        )
        names = [f"Y{i - 1}" if i else "X", f"W{i}", f"W{i}_scale", "bias"]
        nodes.append(conv_node(names, f"Y{i}", attributes, f"conv{i}"))
    tensors.append(numpy_helper.from_array(np.zeros(128, np.float32), "bias"))
    X = helper.make_tensor_value_info("X", TensorProto.FLOAT16, ["batch", 14, 14, 64])
    Y = helper.make_tensor_value_info("Y1", TensorProto.FLOAT16, ["batch", 7, 7, 128])
    graph = helper.make_graph(nodes, "convolutions", [X], [Y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(attach_conv_functions(model), folder / "convolutions.onnx")


def test_kernels_of_convolutions(run, folder, convolutions, built):
    first, second = examine(run, "convolutions.onnx", "--gpu", "h200", "--batch", "64")["model"]["convs"]
    assert (first["image"], second["image"]) == ([64, 14, 14], [64, 14, 14])
    assert (first["K"], second["N"]) == (576, 128)
    for node in (first, second):
        assert node["reason"] is None
        assert {name.split("_")[0] for name in node["kernels"]} == {"fp16"}
    assert "fp16_hopper" in run("doctor", "convolutions.onnx", "--gpu", "h200", "--batch", "64").stdout.replace(
        "\n", ""
    )
    for node in examine(run, "convolutions.onnx", "--gpu", "a100")["model"]["convs"]:
        assert not any("hopper" in name for name in node["kernels"])
        assert "cudnn" in node["kernels"]


def test_layers_in_one_node(run, folder):
    onnx.save(Chain((40, 24, 8), np.float16).model, folder / "chain.onnx")
    content = examine(run, "chain.onnx", "--gpu", "h200", "--dim", "rows=12")
    (node,) = content["model"]["mlps"]
    formats = ["half", "deft8:4"]
    assert node == {"name": "chain", "formats": formats, "x_type": "float16", "widths": [40, 24, 8], "M": 12}
    assert "40 → 24 → 8" in run("doctor", "chain.onnx").stdout


def test_the_kernel_depends_on_the_rows(run, folder, packed, built):
    kernels = []
    for batch, tokens in ((1, 1), (64, 128)):
        content = examine(run, "packed.onnx", "--gpu", "h200", "--batch", batch, "--dim", f"tokens={tokens}")
        (gemm,) = content["model"]["gemms"]
        assert (gemm["name"], gemm["format"], gemm["x_type"], gemm["M"]) == ("layer", "half", "float16", batch * tokens)
        assert gemm["reason"] is None
        kernels.append(gemm["kernel"])
    assert kernels[0] != kernels[1]
    assert content["library"]["problem"] is None
    assert kernels[1] in run("doctor", "packed.onnx", "--gpu", "h200", "--batch", "64", "--dim", "tokens=128").stdout


def test_rows_that_the_model_fixes_decide_whether_a_weight_is_unpacked(run, folder, built):
    """Few rows that are fixed read codes, whatever batch is asked for; where they are open, the batch decides."""
    packed, chosen = pack_weight(np.zeros((4096, 4096), np.float32), "deft8:4"), []
    model = gemm_model(np.zeros((384, 4096), np.float16), packed, np.zeros(4096, np.float32))
    for rows in (16, "batch"):
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("X", TensorProto.FLOAT16, [rows, 4096]))
        onnx.save(model, folder / "rows.onnx")
        (gemm,) = examine(run, "rows.onnx", "--gpu", "h200", "--batch", 384)["model"]["gemms"]
        chosen.append((gemm["M"], gemm["kernel"].endswith("_unpacked")))
    assert chosen == [(16, False), (384, True)]


@pytest.mark.parametrize("output_dtype", [np.float16, np.float32])
def test_a_residual_decides_the_kernel_an_input_that_tells_the_type_does_not(run, folder, built, output_dtype):
    X, packed = np.zeros((6304, 768), np.float16), pack_weight(np.zeros((768, 768), np.float32), "half")
    chosen = []
    for residual in (None, X.astype(output_dtype)):
        model = gemm_model(X, packed, np.zeros(768, np.float32), residual=residual, output_dtype=output_dtype)
        onnx.save(model, folder / "layer.onnx")
        (gemm,) = examine(run, "layer.onnx", "--gpu", "h200")["model"]["gemms"]
        chosen.append(gemm["kernel"])
    assert chosen[0] != chosen[1]


def test_unknown_rows_and_a_gpu_without_kernels(run, folder, packed, built):
    (gemm,) = examine(run, "packed.onnx", "--gpu", "h200")["model"]["gemms"]
    assert gemm["M"] is None
    assert "--dim" in gemm["reason"]
    (gemm,) = examine(run, "packed.onnx", "--batch", 2)["model"]["gemms"]
    assert gemm["reason"] == "no GPU"


def test_rows_are_inferred_through_the_graph(run, folder, built):
    """A DeftGemm behind another one and a Reshape."""
    packed = pack_weight(np.zeros((32, 32), np.float32), "half")
    model = gemm_model(np.zeros((2, 3, 32), np.float16), packed, np.zeros(32, np.float32))
    first = model.graph.node[0]
    first.output[0] = "first"
    second = onnx.NodeProto()
    second.CopyFrom(first)
    second.name, second.input[0], second.output[0] = "second", "flat", "Y"
    model.graph.node.extend([onnx.helper.make_node("Reshape", ["first", "shape"], ["flat"]), second])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([6, 32]), "shape"))
    model.graph.output[0].type.tensor_type.shape.CopyFrom(
        onnx.helper.make_tensor_type_proto(10, [6, 32]).tensor_type.shape
    )
    onnx.save(model, "two.onnx")
    gemms = examine(run, "two.onnx", "--gpu", "h200")["model"]["gemms"]
    assert [(g["name"], g["M"]) for g in gemms] == [("layer", 6), ("second", 6)]


def test_what_a_gpu_is_needed_for_is_not_known(run, folder):
    model = examine(run, "model.onnx")["model"]
    assert (model["memcpy"], model["on_cpu"], model["cuda_graph"]) == (None, None, None)
    assert model["unknown"] == "not known without a usable GPU: no GPU in this test"
    assert model["deft_nodes"] == {}
    assert "copies, nodes on the CPU and CUDA graph: not known" in run("doctor", "model.onnx").stdout


def test_control_flow_rules_a_cuda_graph_out(run, folder):
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2] x, bool c) => (float[2] y) {
            y = If (c) <then_branch = a () => (float[2] p) { p = Relu (x) }, else_branch = b () => (float[2] q) { q = Neg (x) }>
        }"""
    )
    onnx.save(model, "if.onnx")
    found = examine(run, "if.onnx")["model"]
    assert found["cuda_graph"] is False
    assert found["cuda_graph_obstacle"] == "it has control flow: If"
    assert "CUDA graph: no, it has control flow: If" in run("doctor", "if.onnx").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.onnx",), "'missing.onnx' does not exist"),
        (("model.onnx", "--gpu", "abacus"), "--gpu abacus is not one of"),
        (("model.onnx", "--dim", "x"), "--dim x"),
    ],
)
def test_refusals(run, folder, arguments, words):
    result = run("doctor", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("op_type", "inputs", "lacking"),
    [
        ("DeftGemm", ["x"], "inputs"),
        ("DeftGemm", ["x", "w"], "'format'"),
        ("DeftConv", ["x", "w"], "'format'"),
        ("DeftMlp", ["x", "zero"], "'widths'"),
    ],
)
def test_a_damaged_node(run, folder, op_type, inputs, lacking):
    node = helper.make_node(op_type, inputs, ["y"], "packed", domain="ai.deftonnx")
    if op_type == "DeftMlp":  # whose widths are there, but none
        kinds = {"formats": "half", "activations": "none", "element_type": 10, "output_type": 10}
        node.attribute.extend(helper.make_attribute(name, value) for name, value in kinds.items())
        node.attribute.append(helper.make_attribute("widths", [], attr_type=onnx.AttributeProto.INTS))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.deftonnx", 1)]
    onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets), folder / "bad.onnx")
    result = run("doctor", "bad.onnx")
    assert result.exit_code == 5
    assert f"{op_type} node 'packed' is damaged: it lacks" in result.stderr
    assert lacking in result.stderr
