"""Einsum as a product of matrices: the same numbers, and what is none stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import assert_same, model, run

import deftonnx
from deftonnx.rewrite.normalise import export_model, import_model, normalise

SIZES = {"b": 2, "h": 3, "i": 4, "j": 5, "d": 16, "k": 24}
PRODUCTS = [
    "bhid,bhjd->bhij",
    "bhij,bhjd->bhid",
    "bihd,bjhd->bhij",
    "bhij,bjhd->bihd",
    "b i d, b j d -> b i j",
    "id,dj",
    "bid,dk->bik",
    "bid,kd->bik",
    "di,dj->ji",
    "hbd,hdk->bhk",
]
OTHERS = ["bhid,bhjd->bh", "bi,bj->bij", "bhid,bhd->bhi", "ii,ij->ij", "b...d,dk->b...k", "bid,dhk->bihk", "bid->bdi"]


def einsum(equation, constant=False):
    """A model of an Einsum, its second operand a weight if that is asked for, and a feed."""
    terms = equation.replace(" ", "").split("->")[0].replace("...", "i").split(",")
    shapes = [[SIZES[letter] for letter in term] for term in terms]
    if "ii" in terms:
        shapes = [[4, 4], [4, 5]]
    names = ["x", "w"][: len(terms)]
    types = [f"float[{','.join(map(str, shape))}] {name}" for name, shape in zip(names, shapes, strict=True)]
    inputs, weights = (types[:1], f"<{types[1]}>") if constant else (types, "")
    text = f"""graph ({", ".join(inputs)}) => (float y) {weights} {{
        e = Einsum <equation = "{equation}"> ({", ".join(names)}) y = Relu (e) }}"""
    proto = model(text)
    rank = run_rank(proto)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.shape.dim.extend([onnx.TensorShapeProto.Dimension()] * rank)
    rng = np.random.default_rng(0)
    fed = dict(zip(names, shapes, strict=True))
    return proto, {v.name: rng.standard_normal(fed[v.name]).astype(np.float32) for v in proto.graph.input}


def run_rank(proto):
    """Axes of the result."""
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return len(next(v for v in inferred.graph.value_info if v.name == "e").type.tensor_type.shape.dim)


def normalised(proto):
    graph = import_model(proto)
    normalise(graph)
    return export_model(graph, proto).whole()


@pytest.mark.parametrize("equation", PRODUCTS)
def test_products(equation):
    proto, feed = einsum(equation)
    result = normalised(proto)
    operators = [node.op_type for node in result.graph.node]
    assert "MatMul" in operators
    assert "Einsum" not in operators
    assert_same(run(result, feed), run(proto, feed))


@pytest.mark.parametrize("equation", OTHERS)
def test_what_stays(equation):
    proto, feed = einsum(equation)
    result = normalised(proto)
    assert "Einsum" in [node.op_type for node in result.graph.node]
    assert_same(run(result, feed), run(proto, feed))


def test_a_single_value_that_is_summed_stays():
    proto = model("""graph (float[N,3,1] x) => (float[N,3,8] y) <float[16,8] w> {
        r = Relu (x) e = Einsum <equation = "bij,jk->bik"> (r, w) y = Relu (e) }""")
    result, feed = normalised(proto), {"x": np.ones((2, 3, 1), np.float32)}
    assert [node.op_type for node in result.graph.node] == ["Relu", "Einsum", "Relu"]
    assert_same(run(result, feed), run(proto, feed))


@pytest.mark.parametrize("equation", ["bid,dk->bik", "bid,kd->bik"])
def test_weights_are_packed(equation):
    proto, feed = einsum(equation, constant=True)
    result = deftonnx.optimize(proto, calib_data=feed, format="half", density=1, measure=False).model
    assert [node.op_type for node in result.graph.node] == ["DeftGemm"]
    assert_same(run(result, feed), run(proto, feed), 1e-3)
