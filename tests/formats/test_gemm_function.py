"""The function body of DeftGemm in stock ONNX Runtime against NumPy."""

import math

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from gemm_model import DTYPES, gemm_chain, gemm_model, reference, run_gemm
from test_round_trip import all_codes

from deftonnx import overloads
from deftonnx.formats import GEMM_FORMAT_NAMES, FormatError, PackedWeight, pack_weight, unpack_weight
from deftonnx.formats.activation import ACTIVATIONS
from deftonnx.formats.gemm_function import attach_gemm_functions
from deftonnx.formats.operator_function import GUARD

SHAPES = [(0, 8, 4), (1, 1, 1), (3, 17, 5), (2, 16, 1), (5, 1, 7), (4, 33, 9)]  # M, K, N


def case(seed, M, K, N, name, dtype=np.float32):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((M, K)).astype(dtype)
    return (
        X,
        pack_weight(rng.standard_normal((K, N)).astype(np.float32), name),
        rng.standard_normal(N).astype(np.float32),
    )


@pytest.mark.parametrize("name", ["fp32", *GEMM_FORMAT_NAMES])
def test_decoding_equals_unpack_exactly(name):
    packed = all_codes(name)
    packed = PackedWeight(name, packed.codes, np.array([0.75], np.float32), packed.K)
    # one column at a time of the identity reads the weight itself out of the MatMul
    expected = unpack_weight(packed)
    sample = np.unique(np.linspace(0, packed.K - 1, 400).astype(int))
    X = np.zeros((sample.size, packed.K), np.float32)
    X[np.arange(sample.size), sample] = 1
    Y = run_gemm(gemm_model(X, packed, np.zeros(1, np.float32)), X)
    assert np.array_equal(Y, expected[sample])


@pytest.mark.parametrize("name", ["fp32", *GEMM_FORMAT_NAMES])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_layer(name, shape):
    X, packed, bias = case(1, *shape, name)
    Y = run_gemm(gemm_model(X, packed, bias), X)
    expected = reference(X, packed, bias)
    assert Y.shape == expected.shape
    assert np.linalg.norm(Y - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_types(activation, dtype):
    X, packed, bias = case(2, 6, 20, 5, "deft8:4", dtype)
    residual = np.random.default_rng(3).standard_normal((6, 5)).astype(dtype)
    options = {"activation": activation, "alpha": 0.2, "beta": 0.5, "residual": residual}
    Y = run_gemm(gemm_model(X, packed, bias, **options), X, residual)
    expected = reference(X, packed, bias, **options)
    assert Y.dtype == dtype
    tolerance = {np.float32: 1e-6, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}[dtype]
    assert np.linalg.norm(Y.astype(np.float64) - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("features", "block", "kept"), [(64, 16, [3, 0]), (40, 16, [0, 2]), (24, 8, [1]), (9, 1, [8, 2])]
)
def test_elimination(features, block, kept):
    rng = np.random.default_rng(4)
    X = rng.standard_normal((2, 3, features)).astype(np.float32)
    index = np.concatenate([np.arange(b * block, min(b * block + block, features)) for b in kept])
    packed = pack_weight(rng.standard_normal((index.size, 6)).astype(np.float32), "deft16")
    bias = rng.standard_normal(6).astype(np.float32)
    Y = run_gemm(gemm_model(X, packed, bias, features=features, block=block, kept=kept), X)
    expected = reference(X[..., index], packed, bias)
    assert np.linalg.norm(Y - expected) <= 1e-6 * np.linalg.norm(expected)


def test_output_type_can_differ_from_the_input():
    X, packed, bias = case(5, 4, 16, 4, "half", np.float16)
    Y = run_gemm(gemm_model(X, packed, bias, output_dtype=np.float32), X)
    assert Y.dtype == np.float32
    expected = reference(X, packed, bias)
    assert np.linalg.norm(Y - expected) <= 1e-6 * np.linalg.norm(expected)


def test_bodies_are_shared_and_decoding_is_folded(tmp_path):
    X, packed, bias = case(6, 4, 16, 16, "deft8:3")
    model = gemm_model(X, packed, bias)
    second = model.graph.node.add()
    second.CopyFrom(model.graph.node[0])
    second.name, second.input[0], second.output[0] = "second", "Y", "Y2"
    model.graph.output[0].name = "Y2"
    attach_gemm_functions(model)
    assert len(model.functions) == 1
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    # the last Cast, float32 to itself, stays only because it makes a graph output
    assert operators == ["Gemm", "Gemm", "Cast"]


def test_nodes_of_subgraphs_have_bodies():
    X, packed, bias = case(7, 4, 16, 16, "deft16")
    inner = gemm_model(X, packed, bias).graph
    outer = onnx.helper.make_graph(
        [onnx.helper.make_node("If", ["c"], ["Y"], then_branch=inner, else_branch=inner)], "outer", [], []
    )
    model = onnx.helper.make_model(outer, opset_imports=[onnx.helper.make_opsetid("", 17)])
    attach_gemm_functions(model)
    branch = model.graph.node[0].attribute[0].g
    assert branch.node[0].op_type == model.functions[0].name == "DeftGemm"


COMBINATIONS = [("deft8:4", "relu"), ("fp32", "none"), ("half", "tanh"), ("deft8:2", "relu"), ("deft16", "none")]


def test_nodes_of_equal_bodies_share_one():
    model, _, _ = gemm_chain(COMBINATIONS)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} == {f.name for f in model.functions} == {"DeftGemm"}
    assert [node.overload for node in model.graph.node] == ["1", "2", "3", "1", "2"]
    assert [f.overload for f in model.functions] == ["1", "2", "3", ""]
    again = onnx.ModelProto.FromString(model.SerializeToString())
    assert attach_gemm_functions(again).SerializeToString() == model.SerializeToString()


@pytest.mark.skipif(not overloads.KNOWN, reason="ONNX Runtime before 1.27 does not know overloads")
def test_every_node_runs_its_own_body():
    model, X, want = gemm_chain(COMBINATIONS)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"X": X})[0], want, rtol=1e-5, atol=1e-6)


def test_a_runtime_that_does_not_know_overloads_refuses_several_bodies():
    model, _, _ = gemm_chain(COMBINATIONS)
    for node in model.graph.node:
        node.overload = ""
    with pytest.raises(Exception, match=f"ai.deftonnx:{GUARD}.* is not a registered function"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_all_exponent_bits_share_a_body():
    model, X, want = gemm_chain([(f"deft8:{bits}", "none") for bits in range(1, 8)])
    assert [(f.name, f.overload) for f in model.functions] == [("DeftGemm", "")]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"X": X})[0], want, rtol=1e-5, atol=1e-6)


def test_an_old_opset_and_an_unknown_activation_are_refused():
    X, packed, bias = case(8, 1, 16, 4, "deft16")
    with pytest.raises(FormatError, match="opset 13"):
        gemm_model(X, packed, bias, opset=12)
    with pytest.raises(FormatError, match="softmax"):
        gemm_model(X, packed, bias, activation="softmax")


def test_reference_gelu_is_the_error_function():
    # the oracle itself against the definition
    X, packed, bias = case(9, 3, 16, 2, "deft16")
    z = reference(X, packed, bias)
    exact = [[v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in z]
    assert np.allclose(reference(X, packed, bias, activation="gelu"), exact, rtol=1e-12)
