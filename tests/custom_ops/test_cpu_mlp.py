"""DeftMlp on the CPU equals the DeftGemm nodes it stands for: its function body without the library, its kernel with
it; and bad nodes are refused."""

import numpy as np
import onnx
import onnxruntime
import pytest
from gemm_model import ort_value, to_array
from hypothesis import given, settings
from hypothesis import strategies as st
from mlp_model import MLP_TYPES, Chain
from onnx import helper, numpy_helper
from refusals import refusal, with_attribute

from deftonnx.formats import GEMM_FORMAT_NAMES
from deftonnx.formats.activation import ACTIVATIONS as ALL_ACTIVATIONS
from deftonnx.formats.gemm_function import OPERATOR, attach_gemm_functions
from deftonnx.formats.mlp_function import attributes_of, gemms_of, layer_inputs
from deftonnx.formats.operator_function import DOMAIN
from deftonnx.formats.packed import FormatError
from deftonnx.inspect import inspect
from deftonnx.optimize import optimize
from deftonnx.overloads import loadable

ENDS = [(None, None), (np.float32, None), (None, np.float32), (np.float32, np.float32)]
FORMATS = [name for name in GEMM_FORMAT_NAMES if name != "fp8"]


def apart(model):
    """The DeftGemm nodes of a model of one DeftMlp: X is rounded by a Cast, and a constant tells the type of Y."""
    node = model.graph.node[0]
    attributes = attributes_of(node)
    layers = gemms_of(attributes)
    nodes = [helper.make_node("Cast", ["X"], ["Y0"], to=attributes["element_type"])]
    for i, (layer, constants) in enumerate(zip(layers, layer_inputs(node.input), strict=True), start=1):
        y = "Y" if i == len(layers) else f"Y{i}"
        inputs = [f"Y{i - 1}", *constants, *(["kept", "zero"] if i == len(layers) else [])]
        nodes.append(helper.make_node(OPERATOR, inputs, [y], domain=DOMAIN, name=f"layer{i}", **layer))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.functions[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.int32), "kept"))
    return attach_gemm_functions(result)


def run(model, X, library=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (Y,) = session.run_with_ort_values(["Y"], {"X": ort_value(X)})
    return to_array(Y)


def check(chain, X, library):
    onnx.checker.check_model(chain.model)
    body, kernel = run(chain.model, X), run(chain.model, X, library)
    assert body.tobytes() == run(loadable(apart(chain.model)), X).tobytes()
    assert kernel.tobytes() == run(apart(chain.model), X, library).tobytes()
    return body, kernel


@pytest.mark.parametrize("dtype", MLP_TYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize(("x_type", "y_type"), ENDS)
def test_the_layers_one_by_one(library, dtype, x_type, y_type):
    for widths in ((13, 7, 9, 5), (48, 32, 16)):
        chain = Chain(widths, dtype, x_type=x_type, y_type=y_type)
        for M in (0, 1, 6):
            X = chain.rows(M)
            for Y in check(chain, X, library):
                assert M == 0 or chain.error(Y, X) <= 1


def test_bodies_cut_rows_that_are_padded_alone():
    for widths, cuts in (((48, 32, 16), 0), ((48, 33, 16), 1), ((40, 33, 16), 2)):
        (body,) = Chain(widths, np.float16, kinds=[("half", "none")] * 2).model.functions
        kinds = [node.op_type for node in body.node]
        assert kinds.count("Slice") == kinds.count("Reshape") == cuts
        read = {name for node in body.node for name in node.input} | {"Y"}
        assert all(read.intersection(node.output) for node in body.node if node.op_type == "Constant")


def test_leading_axes(library):
    chain = Chain((12, 8, 6), np.float16)
    chain.model.graph.input[0].type.tensor_type.ClearField("shape")
    chain.model.graph.output[0].type.tensor_type.ClearField("shape")
    X = chain.rows(30)
    for shape in ((12,), (2, 3, 5, 12)):
        rows = X[: np.prod(shape[:-1], dtype=int)]
        Y = run(chain.model, rows.reshape(shape), library)
        assert Y.shape == (*shape[:-1], 6)
        assert Y.tobytes() == run(chain.model, rows, library).tobytes()


@given(
    widths=st.lists(st.integers(1, 40), min_size=3, max_size=7),
    kinds=st.lists(
        st.tuples(st.sampled_from(FORMATS), st.sampled_from(sorted(ALL_ACTIVATIONS))), min_size=6, max_size=6
    ),
    dtype=st.sampled_from(MLP_TYPES),
    ends=st.sampled_from(ENDS),
    M=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_any_chain(library, widths, kinds, dtype, ends, M):
    chain = Chain(widths, dtype, x_type=ends[0], y_type=ends[1], kinds=kinds)
    check(chain, chain.rows(M), library)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_opsets(library, opset):
    chain = Chain((20, 12, 6), np.float16, opset=opset)
    X = chain.rows(4)
    assert chain.error(run(chain.model, X), X) <= 1


def good_model():
    return Chain((33, 20, 9), np.float16, y_type=np.float32).model


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("layout", 2, "layout version 2"),
        ("layout", None, "'layout' is missing"),
        ("widths", [33, 20], "two layers at least"),
        ("widths", [33, 20, 9, 9], "it has 8 inputs, expected 11"),
        ("widths", [33, 20, 8], "expected (8, 32)"),
        ("widths", [32, 20, 9], "layer 0: input W has shape (20, 48), expected (20, 32)"),
        ("widths", [33, 0, 9], "width 0 is out of range"),
        ("widths", [33, -20, 9], "width -20 is out of range"),
        ("widths", [33, 2**40, 9], "is out of range"),
        ("widths", None, "'widths'"),
        ("formats", "half", "'formats' has 1 values, expected 2"),
        ("formats", "half deft9:4", "unknown format 'deft9:4'"),
        ("formats", "half fp8", "format fp8"),
        ("formats", "deft8:4 deft8:4", "layer 0: the type of input W does not match"),
        ("formats", None, "'formats' is missing"),
        ("exponent_bits", [0], "'exponent_bits' has 1 values"),
        ("exponent_bits", [0, 5], "layer 1: exponent_bits = 5"),
        ("activations", "relu", "'activations' has 1 values"),
        ("activations", "relu softmax", "unknown activation 'softmax'"),
        ("alphas", [0.0, 0.0, 0.0], "'alphas' has 3 values"),
        ("betas", None, "'betas'"),
        ("element_type", 1, "neither float16 nor bfloat16"),
        ("element_type", 16, "X and Y are of element_type or float32"),
        ("output_type", 16, "output_type"),
        ("compute", None, "'compute' is missing"),
    ],
)
def test_bad_attributes_are_refused(options, attribute, value, reason):
    model = with_attribute(good_model(), attribute, value)
    assert reason in refusal(model, options)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("widths", None, "lacks the attribute 'widths'"),
        ("betas", None, "lacks the attribute 'betas'"),
        ("widths", [33, 20], "1 layers by 'widths', 2 by 'alphas'"),
        ("formats", "half", "2 layers by 'widths', 1 by 'formats'"),
    ],
)
def test_bad_attributes_are_told_without_the_library(attribute, value, reason):
    model = with_attribute(good_model(), attribute, value)
    for command in (inspect, optimize):
        with pytest.raises(FormatError, match=reason):
            command(model)


def test_a_bias_that_is_an_input_counts_nothing():
    model = good_model()
    (layers,) = inspect(model)
    tensor = next(t for t in model.graph.initializer if t.name == "bias0")
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.graph.initializer.remove(tensor)
    assert inspect(model)[0].parameters == layers.parameters - 20


@pytest.mark.parametrize("name", ["zero", "W0", "W1_scale", "bias1"])
def test_inputs_that_are_not_constant_are_refused(options, name):
    model = good_model()
    tensor = next(t for t in model.graph.initializer if t.name == name)
    model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    model.graph.initializer.remove(tensor)
    assert "must be an initializer" in refusal(model, options)


def test_constants_of_other_types_or_shapes_are_refused(options):
    for name, values, reason in (
        ("W1_scale", np.ones(9, np.float64), "scale must be float32"),
        ("bias0", np.zeros(20, np.float16), "bias must be float32"),
        ("bias0", np.zeros(19, np.float32), "expected (20)"),
        ("zero", np.zeros(1, np.float32), "input zero has shape (1)"),
    ):
        model = good_model()
        next(t for t in model.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(values, name))
        assert reason in refusal(model, options)


def test_an_x_of_another_width_is_refused(library):
    model = good_model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(Exception, match="its last axis must have 33"):
        run(model, np.zeros((2, 32), np.float16), library)
