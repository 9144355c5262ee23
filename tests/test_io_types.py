"""`optimize(io_types=…)`: which tensors become narrow, where the casts are, and that the result still runs everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from models import distance, model
from onnx import TensorProto
from small_files import inputs, small_model
from small_networks import samples, transformer, with_a_branch

import deftonnx
from deftonnx import evaluation
from deftonnx.errors import UnsupportedError, UsageError
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.rewrite.newer_opset import standard_opset

TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
ERROR = {"float16": 2e-3, "bfloat16": 2e-2}


def narrowed(proto: onnx.ModelProto, io_types: str, data: Any = None, name: str = "half") -> deftonnx.Result:
    """Packed, nothing eliminated."""
    density = {} if data is None else {"density": 1.0}
    return deftonnx.optimize(proto, calib_data=data, format=name, io_types=io_types, measure=False, **density)


def border_types(proto: onnx.ModelProto) -> list[int]:
    return [t.type.tensor_type.elem_type for t in (*proto.graph.input, *proto.graph.output)]


def output_types(proto: onnx.ModelProto) -> list[int]:
    """Of the DeftGemm nodes, in order."""
    return [a.i for node in proto.graph.node for a in node.attribute if a.name == "output_type"]


def casts(proto: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in proto.graph.node)


def run(proto: onnx.ModelProto, **feed: Any) -> np.ndarray[Any, Any]:
    """The first output, from float32 inputs, as float32."""
    (array, *_) = evaluation.run(evaluation.session(proto), [feed]).values()
    return array.astype(np.float32)


@pytest.mark.parametrize("io_types", TYPES)
@pytest.mark.parametrize("name", ["half", "deft16", "deft16q", "deft8:3"])
def test_chain(name: str, io_types: str) -> None:
    result = narrowed(small_model(), io_types, inputs(), name)
    onnx.checker.check_model(result.model, full_check=True)
    assert border_types(result.model) == [TYPES[io_types]] * 2
    assert output_types(result.model) == [TYPES[io_types]] * 3
    assert casts(result.model) == 0
    assert [row.output_type for row in result.report.layers] == [io_types] * 3
    wide = narrowed(small_model(), "keep", inputs(), name)
    assert border_types(wide.model) == [TensorProto.FLOAT] * 2
    assert distance(run(result.model, x=inputs()), run(wide.model, x=inputs())) <= ERROR[io_types]
    assert deftonnx.check(result.model, small_model(), inputs(), max_loss=0.1).passed


@pytest.mark.parametrize("io_types", TYPES)
def test_only_what_packed_layers_alone_make_and_read(io_types: str) -> None:
    result = narrowed(transformer(), io_types, samples())
    onnx.checker.check_model(result.model, full_check=True)
    types = dict(
        zip(
            [n.name for n in result.model.graph.node if is_gemm(n.domain, n.op_type)],
            output_types(result.model),
            strict=True,
        )
    )
    assert types.pop("up") == TYPES[io_types]
    assert set(types.values()) == {TensorProto.FLOAT}
    assert casts(result.model) == 2
    assert distance(run(result.model, x=samples()), run(transformer(), x=samples())) <= ERROR[io_types]


@pytest.mark.parametrize("io_types", TYPES)
def test_operators_that_move_numbers_carry_the_type(io_types: str) -> None:
    proto = model(
        """graph (float[N,4,16] x) => (float[N,8,8] z) <int64[2] rows, int64[3] back, int64[1] zero, int64[1] two,
            int64[1] axis, float[16,32] w, float[32] b, float[64,64] v, int64[3] shape, int64[2] pick> {
            r = Reshape (x, rows) [a] p = Gemm (r, w, b) a = Relu (p) q = Reshape (a, back)
            t = Transpose <perm = [0,2,1]> (q) s = Slice (t, zero, two, axis) u = Gather <axis = 1> (t, pick)
            c = Concat <axis = 1> (s, s, u) d, e = Split <axis = 1> (c) g = Concat <axis = 1> (e, d)
            f = Flatten (g) h = Unsqueeze (f, axis) i = Squeeze (h, axis) k = Identity (i)
            [m] m = MatMul (k, v) z = Reshape (m, shape) }""",
        rows=np.array([-1, 16]),
        back=np.array([-1, 4, 32]),
        zero=np.array([0]),
        two=np.array([6]),
        axis=np.array([1]),
        shape=np.array([-1, 8, 8]),
        pick=np.array([1, 3, 5, 7]),
    )
    x = np.random.default_rng(0).standard_normal((6, 4, 16)).astype(np.float32)
    result = narrowed(proto, io_types, x)
    assert casts(result.model) == 0
    assert output_types(result.model) == [TYPES[io_types]] * 2
    assert distance(run(result.model, x=x), run(proto, x=x)) <= ERROR[io_types]


def test_elementwise_operators_carry_float16_only() -> None:
    text = """graph (float[N,16] x) => (float[N,16] z) <float[16,32] w, float[16,32] v, float[32,16] u> {
        p = MatMul (x, w) s = Sigmoid (p) q = MatMul (x, v) g = Mul (s, q) z = MatMul (g, u) }"""
    x = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    half, brain = (narrowed(model(text), io_types, x) for io_types in TYPES)
    assert output_types(half.model) == [TensorProto.FLOAT16] * 3
    assert casts(half.model) == 0
    assert output_types(brain.model) == [TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.BFLOAT16]
    for result, io_types in ((half, "float16"), (brain, "bfloat16")):
        assert distance(run(result.model, x=x), run(model(text), x=x)) <= ERROR[io_types]


RESIDUAL = """graph (float[N,16] x) => (float[N,4] z) <float[16,32] w, float[32,32] v, float[32,4] u> {
    [a] a = MatMul (x, w) [b] b = MatMul (a, v) s = Add (a, b) [c] z = MatMul (s, u) }"""


def test_a_residual_has_the_type_of_the_sum() -> None:
    x = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    result = narrowed(model(RESIDUAL), "float16", x)
    assert [n.op_type for n in result.model.graph.node] == ["DeftGemm"] * 3
    assert output_types(result.model) == [TensorProto.FLOAT16] * 3
    assert distance(run(result.model, x=x), run(model(RESIDUAL), x=x)) <= ERROR["float16"]


@pytest.mark.parametrize(("factor", "inner"), [(1e6, "BFLOAT16"), (1e-6, "BFLOAT16"), (1.0, "FLOAT16")])
def test_values_that_float16_cannot_hold_make_bfloat16(factor: float, inner: str) -> None:
    proto = small_model()
    for tensor, scale in zip(proto.graph.initializer[:3:2], (factor, 1 / factor), strict=True):
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(scale), tensor.name)
        )
    proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.zeros(32, np.float32), "b0"))
    result = narrowed(proto, "float16", inputs())
    assert border_types(result.model) == [TensorProto.FLOAT16] * 2
    assert output_types(result.model) == [TensorProto.DataType.Value(inner), TensorProto.FLOAT16, TensorProto.FLOAT16]
    assert distance(run(result.model, x=inputs()), run(proto, x=inputs())) <= ERROR["bfloat16"]


def test_inputs_and_outputs_beyond_float16_stay() -> None:
    data = 1e5 * inputs()
    result = narrowed(small_model(), "float16", data)
    assert border_types(result.model) == [TensorProto.FLOAT] * 2
    messages = [w for w in result.report.warnings if "stays float32" in w]
    assert len(messages) == 2
    assert "input 'x' stays float32: its values reach" in messages[0]


def test_without_data_only_the_borders_are_float16() -> None:
    result = narrowed(small_model(), "float16")
    assert border_types(result.model) == [TensorProto.FLOAT16] * 2
    assert output_types(result.model) == [TensorProto.BFLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT16]


@pytest.mark.parametrize("io_types", TYPES)
def test_borders_that_others_read_and_make_are_cast(io_types: str) -> None:
    proto = model("""graph (float[N,3,8,8] x, int64[N] i) => (float[N,6] z, int64[N] j) <float[4,3,3,3] w, float[144,6] v> {
        c = Conv (x, w) r = Relu (c) f = Flatten (r) m = MatMul (f, v) z = Softmax (m) j = Neg (i) }""")
    x = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    feed = {"x": x, "i": np.arange(20)}
    result = narrowed(proto, io_types, feed)
    assert [t.name for t in (*result.model.graph.input, *result.model.graph.output)] == ["x", "i", "z", "j"]
    assert border_types(result.model) == [TYPES[io_types], TensorProto.INT64] * 2
    assert casts(result.model) == 2
    assert distance(run(result.model, **feed), run(proto, **feed)) <= ERROR[io_types]


def test_a_narrow_model_is_optimised_again() -> None:
    first = narrowed(small_model(), "float16", inputs()).model
    data = inputs().astype(np.float16)
    again = deftonnx.optimize(first, calib_data=data, format="half", io_types="float16", measure=False).model
    np.testing.assert_array_equal(run(again, x=data), run(first, x=data))


def test_old_opset() -> None:
    proto = model("graph (float[N,16] x) => (float[N,16] y) <float[16,16] w> { y = MatMul (x, w) }", opset=12)
    assert border_types(narrowed(proto, "float16").model) == [TensorProto.FLOAT16] * 2
    newer = narrowed(proto, "bfloat16").model
    assert border_types(newer) == [TensorProto.BFLOAT16] * 2
    assert standard_opset(newer) == 13
    proto = with_a_branch(12)
    with pytest.raises(UnsupportedError, match="--io-types bfloat16 needs opset 13, but the model stays at opset 12"):
        narrowed(proto, "bfloat16")


def test_unknown_type() -> None:
    with pytest.raises(UsageError, match="--io-types 'float8' is not one of keep, float16, bfloat16"):
        narrowed(small_model(), "float8")


@pytest.mark.parametrize("options", [{}, {"preset": "dense16"}, {"io_types": "float16"}, {"calib_data": "random"}])
def test_a_model_with_inputs_in_bfloat16_is_calibrated_on_float32(options: dict[str, Any]) -> None:
    narrow = narrowed(small_model(), "bfloat16", inputs())
    settings = {"calib_data": inputs(), "density": 1.0, "measure": False, **options}
    again = deftonnx.optimize(narrow.model, **settings)
    assert border_types(again.model) == [TensorProto.BFLOAT16] * 2
    assert distance(run(again.model, x=inputs()), run(narrow.model, x=inputs())) <= ERROR["bfloat16"]
