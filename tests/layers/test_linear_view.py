"""Every layer kind is what it says: rows(x)·weight + bias is what ONNX Runtime computes, and edits are slices."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from models import Array, assert_same, distance, export_model, feed_for, model, prepare, run

from deftonnx.layers import LinearLayer
from deftonnx.layers.conv_transpose import ConvTransposeLayer

UNLIMITED = 1 << 40


@dataclass
class Kind:
    """A node, its inputs, and the type of its numbers."""

    nodes: str
    x: str
    weights: str
    y: str
    dtype: str = "float"
    opset: int = 17
    values: dict[str, Array] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        """The model of this one layer."""
        text = f"graph (float[{self.x}] x) => (float[{self.y}] y) <{self.weights}> {{ {self.nodes} }}"
        return model(text.replace("float[", f"{self.dtype}["), opset=self.opset, **self.values)


def conv(attributes: str, x: str, w: str, bias: int = 0, **kwargs: str) -> Kind:
    """A Conv to an output of any size."""
    rank = x.count(",") + 1
    weights = f"float[{w}] w" + (f", float[{bias}] b" if bias else "")
    operands = "x, w, b" if bias else "x, w"
    return Kind(f"y = Conv {attributes} ({operands})", x, weights, ",".join(f"d{i}" for i in range(rank)), **kwargs)


def gemm(attributes: str = "", x: str = "N,6", w: str = "6,5", c: str | None = None, **kwargs: str) -> Kind:
    """A Gemm with five outputs."""
    weights = f"float[{w}] w" + ("" if c is None else f", float[{c}] c")
    operands = "x, w" if c is None else "x, w, c"
    return Kind(f"y = Gemm {attributes} ({operands})", x, weights, "M,5", **kwargs)


def transpose(attributes: str, x: str, w: str, bias: int = 0) -> Kind:
    """A ConvTranspose whose windows do not overlap."""
    weights = f"float[{w}] w" + (f", float[{bias}] b" if bias else "")
    operands = "x, w, b" if bias else "x, w"
    y = ",".join(f"d{i}" for i in range(x.count(",") + 1))
    return Kind(f"y = ConvTranspose {attributes} ({operands})", x, weights, y)


KINDS = {
    "conv_1d": conv("", "N,4,9", "5,4,3", 5),
    "conv_2d": conv("<pads = [1,1,1,1]>", "N,3,7,6", "4,3,3,3", 4),
    "conv_2d_no_bias": conv("", "N,3,7,6", "4,3,3,2"),
    "conv_2d_strided": conv("<strides = [2,3], pads = [1,0,2,1]>", "N,3,9,8", "4,3,3,2", 4),
    "conv_2d_dilated": conv("<dilations = [2,1], pads = [2,0,2,0]>", "N,3,7,6", "4,3,3,3"),
    "conv_2d_grouped": conv("<group = 2, strides = [1,2]>", "N,8,6,6", "6,4,3,3", 6),
    "conv_2d_same_upper": conv('<auto_pad = "SAME_UPPER", strides = [2,2]>', "N,3,7,8", "4,3,3,3"),
    "conv_2d_same_lower": conv('<auto_pad = "SAME_LOWER", strides = [2,3]>', "N,3,8,7", "4,3,4,2"),
    "conv_2d_same_stride_over_kernel": conv('<auto_pad = "SAME_UPPER", strides = [3,3]>', "N,3,8,7", "4,3,1,2"),
    "conv_2d_valid": conv('<auto_pad = "VALID", strides = [2,1]>', "N,3,7,8", "4,3,3,3"),
    "conv_2d_1x1": conv("", "N,8,3,3", "4,8,1,1"),
    "conv_3d": conv("<pads = [1,0,1,0,1,1], strides = [1,2,1]>", "N,2,4,5,6", "3,2,2,3,2", 3),
    "conv_3d_grouped_dilated": conv("<group = 2, dilations = [1,2,1]>", "N,4,4,5,6", "6,2,2,2,2"),
    "conv_float16": conv("<pads = [1,1,1,1]>", "N,3,7,6", "4,3,3,3", 4, dtype="float16"),
    "gemm": gemm(c="5"),
    "gemm_no_bias": gemm(),
    "gemm_row_bias": gemm(c="1,5"),
    "gemm_one_bias": gemm(c="1"),
    "gemm_scalar_bias": gemm(c=""),
    "gemm_one_by_one_bias": gemm(c="1,1"),
    "gemm_trans_b": gemm("<transB = 1>", w="5,6", c="5"),
    "gemm_trans_a": gemm("<transA = 1>", x="6,N", c="5"),
    "gemm_trans_both": gemm("<transA = 1, transB = 1>", x="6,N", w="5,6", c="5"),
    "gemm_alpha_beta": gemm("<alpha = 0.5, beta = 2.5, transB = 1>", w="5,6", c="5"),
    "gemm_float64": gemm("<alpha = 0.5>", c="5", dtype="double"),
    "gemm_float16": gemm("<beta = 0.5>", c="5", dtype="float16"),
    "matmul": Kind("y = MatMul (x, w)", "N,6", "float[6,5] w", "N,5"),
    "matmul_sequence": Kind("y = MatMul (x, w)", "N,4,6", "float[6,5] w", "N,4,5"),
    "matmul_vector": Kind("y = MatMul (x, w)", "6", "float[6,5] w", "5"),
    "matmul_bias": Kind("p = MatMul (x, w) y = Add (p, b)", "N,4,6", "float[6,5] w, float[5] b", "N,4,5"),
    "matmul_bias_first": Kind("p = MatMul (x, w) y = Add (b, p)", "N,4,6", "float[6,5] w, float[1,1,5] b", "N,4,5"),
    "matmul_left": Kind("y = MatMul (w, x)", "N,6,4", "float[5,6] w", "N,5,4"),
    "matmul_left_bias": Kind("p = MatMul (w, x) y = Add (p, b)", "N,6,4", "float[5,6] w, float[5,1] b", "N,5,4"),
    "matmul_batched": Kind("y = MatMul (x, w)", "N,2,4,6", "float[2,6,5] w", "N,2,4,5"),
    "matmul_batched_twice": Kind("y = MatMul (x, w)", "3,2,4,6", "float[3,2,6,5] w", "3,2,4,5"),
    "matmul_broadcast_batch": Kind("y = MatMul (x, w)", "1,4,6", "float[3,6,5] w", "3,4,5"),
    "matmul_broadcast_weight": Kind("y = MatMul (x, w)", "N,4,6", "float[1,6,5] w", "N,4,5"),
    "matmul_left_batched": Kind("y = MatMul (w, x)", "N,2,6,4", "float[2,5,6] w", "N,2,5,4"),
    "matmul_float16": Kind("y = MatMul (x, w)", "N,6", "float[6,5] w", "N,5", dtype="float16"),
    "matmul_float64": Kind("y = MatMul (x, w)", "N,6", "float[6,5] w", "N,5", dtype="double"),
    "transpose": transpose("<strides = [2,2]>", "N,4,3,3", "4,5,2,2", 5),
    "transpose_wide_stride": transpose("<strides = [3]>", "N,4,3", "4,5,2"),
    "transpose_grouped": transpose("<strides = [2,2], group = 2>", "N,4,3,3", "4,3,2,2", 6),
    "transpose_3d": transpose("<strides = [2,2,2]>", "N,3,2,3,2", "3,2,2,2,2", 2),
}


def tolerance(kind: Kind) -> float:
    """Rounding of the type."""
    return 2e-3 if kind.dtype == "float16" else 1e-5


def layer_of(kind: Kind) -> tuple[onnx.ModelProto, LinearLayer, object]:
    """The model, its only layer, and its graph."""
    proto = kind.model()
    graph, layers = prepare(proto)
    assert len(layers) == 1
    return proto, layers[0], graph


def as_rows(layer: LinearLayer, y: Array) -> Array:
    """What ONNX Runtime gave, as (rows, groups, outputs)."""
    if isinstance(layer, ConvTransposeLayer):
        batch, _, *spatial = y.shape
        strides = layer.node.attrs["strides"]
        y = np.pad(y, [(0, 0), (0, 0), *[(0, -n % s) for n, s in zip(spatial, strides, strict=True)]])
        rank = len(spatial)
        cut = [part for n, s in zip(y.shape[2:], strides, strict=True) for part in (n // s, s)]
        y = y.reshape(batch, layer.groups, layer.features, *cut)
        y = y[(..., *[slice(None, size) for k in layer.kernel for size in (None, k)])]
        pixels, taps = [3 + 2 * i for i in range(rank)], [4 + 2 * i for i in range(rank)]
        return y.transpose(0, *pixels, 1, 2, *taps).reshape(-1, layer.groups, layer.outputs)
    if layer.op == "Conv":
        return np.moveaxis(y, 1, -1).reshape(-1, layer.groups, layer.outputs)
    if layer.output_axis == -2:
        y = np.swapaxes(y, -1, -2)
    if layer.groups > 1:
        y = np.swapaxes(y.reshape(-1, layer.groups, *y.shape[-2:]), 1, 2)
    return y.reshape(-1, layer.groups, layer.outputs)


@pytest.mark.parametrize("name", KINDS)
def test_rows_times_weight_is_the_node(name: str) -> None:
    kind = KINDS[name]
    proto, layer, _ = layer_of(kind)
    feed = feed_for(proto)
    rows = layer.rows(feed["x"], UNLIMITED, np.random.default_rng(0))
    assert rows.dtype == np.float32
    assert rows.shape[1:] == (layer.groups, layer.K)
    weight = layer.weight()
    assert weight.shape == (layer.groups, layer.K, layer.outputs)
    got = np.einsum("rgk,gkn->rgn", rows, weight) + layer.row_bias(weight, layer.bias())
    assert distance(got, as_rows(layer, run(proto, feed)[0])) <= tolerance(kind)


@pytest.mark.parametrize("name", KINDS)
def test_storing_what_was_read_changes_nothing(name: str) -> None:
    kind = KINDS[name]
    proto, layer, graph = layer_of(kind)
    weight, bias = layer.weight(), layer.bias()
    layer.store(weight, bias)
    np.testing.assert_allclose(layer.weight(), weight, rtol=1e-3)
    feed = feed_for(proto)
    assert_same(run(export_model(graph, proto).whole(), feed), run(proto, feed), tolerance(kind))


@pytest.mark.parametrize("name", KINDS)
def test_storing_a_new_bias_adds_it(name: str) -> None:
    kind = KINDS[name]
    proto, layer, graph = layer_of(kind)
    weight, old = layer.weight(), layer.bias()
    size = layer.groups * (layer.features if isinstance(layer, ConvTransposeLayer) else layer.outputs)
    shift = np.linspace(-1, 1, size).astype(np.float32)
    layer.store(weight, shift if old is None else old + shift)
    feed = feed_for(proto)
    y = run(proto, feed)[0]
    axis = 1 if layer.op in ("Conv", "ConvTranspose") else y.ndim + layer.output_axis if layer.output_axis < 0 else 1
    if layer.op == "MatMul" and layer.groups > 1:
        lead = layer.node.inputs[layer.weight_side].shape[:-2]
        view = (*lead, 1, layer.outputs) if layer.output_axis == -1 else (*lead, layer.outputs, 1)
    else:
        view = [-1 if a == axis else 1 for a in range(y.ndim)]
    assert_same(
        run(export_model(graph, proto).whole(), feed), [(y + shift.reshape(view)).astype(y.dtype)], tolerance(kind)
    )


@pytest.mark.parametrize("name", KINDS)
def test_bias_of_rows_and_back(name: str) -> None:
    _, layer, _ = layer_of(KINDS[name])
    bias = layer.bias()
    if bias is None:
        assert not layer.row_bias(layer.weight(), None).any()
    else:
        np.testing.assert_allclose(layer.bias_from_rows(layer.row_bias(layer.weight(), bias)), bias, rtol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_kept_inputs_are_slices_of_the_weight(name: str) -> None:
    _, layer, _ = layer_of(KINDS[name])
    weight, taps, channels = layer.weight(), layer.taps, layer.channels
    layer.kept[:, :, -1] = False
    order = np.arange(channels)[::-1][: channels - 1]  # reversed, without the first
    groups = layer.input_features // channels
    layer.keep_inputs(np.concatenate([g * channels + order for g in range(groups)]))
    expected = weight.reshape(layer.groups, taps, channels, -1)[:, :, order]
    np.testing.assert_array_equal(layer.weight(), expected.reshape(layer.groups, -1, weight.shape[2]))
    assert taps * (channels - 1) == layer.K
    assert not layer.kept[:, :, 0].any()
    assert layer.kept[:, :, 1:].all()


@pytest.mark.parametrize("name", KINDS)
def test_kept_outputs_are_slices_of_the_result(name: str) -> None:
    kind = KINDS[name]
    proto, layer, graph = layer_of(kind)
    groups = 1 if layer.op == "MatMul" else layer.groups
    count = layer.output_features // groups
    alive = np.concatenate([g * count + np.arange(count)[::-1][: count - 1] for g in range(groups)])
    layer.keep_outputs(alive)
    feed = feed_for(proto)
    y = run(proto, feed)[0]
    for tensor in graph.outputs:
        tensor.shape = None
    small = export_model(graph, proto).whole()
    small.graph.output[0].type.tensor_type.ClearField("shape")
    axis = layer.output_axis if layer.output_axis >= 0 else y.ndim + layer.output_axis
    assert_same(run(small, feed), [y.take(alive, axis)], tolerance(kind))


@pytest.mark.parametrize("name", ["conv_2d_grouped", "matmul_batched", "gemm", "transpose"])
def test_sampled_rows_are_rows(name: str) -> None:
    proto, layer, _ = layer_of(KINDS[name])
    x = feed_for(proto)["x"]
    whole = layer.rows(x, UNLIMITED, np.random.default_rng(0))
    some = layer.rows(x, 2, np.random.default_rng(0))
    places = [np.flatnonzero((whole == row).all((1, 2))) for row in some]
    assert len(some) == 2
    assert all(len(place) == 1 for place in places)
    assert places[0][0] < places[1][0]
    np.testing.assert_array_equal(some, layer.rows(x, 2, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("name", "count"), [("conv_2d", 42), ("conv_2d_strided", 15), ("gemm", 1), ("matmul_sequence", 4), ("transpose", 9)]
)
def test_macs_are_rows_times_weights(name: str, count: int) -> None:
    _, layer, _ = layer_of(KINDS[name])
    assert layer.rows_per_sample()[1] == count
    assert layer.macs() == count * layer.groups * layer.K * layer.outputs
    layer.kept[:, :, 0] = False
    assert layer.macs() == count * layer.groups * (layer.K - layer.taps) * layer.outputs


def test_empty_batch_has_no_rows() -> None:
    _, layer, _ = layer_of(KINDS["conv_2d"])
    assert layer.rows(np.zeros((0, 3, 7, 6), np.float32), 10, np.random.default_rng(0)).shape == (0, 1, 27)
