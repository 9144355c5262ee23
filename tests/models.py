"""Small seeded ONNX models, and the way from a masked graph to a reduced one that tests compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import helper, numpy_helper, parser

from deftonnx.formats.mlp_function import attributes_of, gemms_of
from deftonnx.layers import LinearLayer, find_layers
from deftonnx.overloads import loadable
from deftonnx.rewrite.absorb import absorb
from deftonnx.rewrite.eliminate import eliminate
from deftonnx.rewrite.normalise import export_model, import_model, normalise

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
IR_VERSIONS = {7: 4, 8: 4, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


def model(text: str, *, opset: int = 17, seed: int = 0, **values: Array) -> onnx.ModelProto:
    """A model from ONNX text: `graph (inputs) => (outputs) <float[4,8] w, …> { nodes }`.

    What is declared between <> and made by no node becomes an initializer: from `values`, else seeded random numbers.
    """
    ir_version = IR_VERSIONS.get(opset, 11)
    header = f'<ir_version: {ir_version}, opset_import: ["": {opset}, "com.microsoft": 1]>'
    proto = parser.parse_model(header + text)
    rng = np.random.default_rng(seed)
    made = {name for node in proto.graph.node for name in node.output}
    declared = list(proto.graph.value_info)
    del proto.graph.value_info[:]
    for info in declared:
        if info.name in made:
            proto.graph.value_info.append(info)
            continue
        kind = info.type.tensor_type
        shape = [d.dim_value for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        array = values[info.name] if info.name in values else _random(rng, shape)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array, dtype=dtype), info.name))
    onnx.checker.check_model(proto)
    return proto


def _newest_opset() -> int:
    """The newest opset that the installed onnxruntime loads."""
    for opset in range(onnx.defs.onnx_opset_version(), 21, -1):
        try:
            session(
                parser.parse_model(
                    f'<ir_version: 11, opset_import: ["": {opset}]> g (float x) => (float y) {{ y = Abs (x) }}'
                )
            )
        except Exception:  # its error for this is of no public type
            continue
        return opset
    return 21


def _random(rng: np.random.Generator, shape: list[int]) -> Array:
    return rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) + 1)


def prepare(proto: onnx.ModelProto) -> tuple[gs.Graph, list[LinearLayer]]:
    """The normalised graph and its linear layers."""
    graph = import_model(proto)
    normalise(graph)
    return graph, [found for found in find_layers(graph) if isinstance(found, LinearLayer)]


def mask(layer: LinearLayer, kept: Array) -> None:
    """Eliminate what `kept` (broadcast to groups, taps, channels) leaves out, as elimination does: weights to zero."""
    layer.kept = np.array(np.broadcast_to(kept, layer.kept.shape))
    weight = layer.weight() * layer.kept.reshape(layer.groups, layer.K, 1)
    layer.store(weight, layer.bias())


def reduce(
    graph: gs.Graph, layers: list[LinearLayer], like: onnx.ModelProto, absorbing: bool = True
) -> onnx.ModelProto:
    """The masked graph after absorption and elimination."""
    while absorbing and absorb(graph, layers):
        pass
    eliminate(graph, layers)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor not in graph.inputs and tensor not in graph.outputs:
            tensor.shape = tensor.dtype = None
    result = export_model(graph, like).whole()
    del result.graph.value_info[:]
    return result


def masked_and_reduced(
    proto: onnx.ModelProto, masks: Mapping[str, Array] | Callable[[LinearLayer], Array | None]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Both forms of `proto` with the layers named in `masks` reduced (or every layer for which `masks` gives one)."""
    graph, layers = prepare(proto)
    for layer in layers:
        kept = masks(layer) if callable(masks) else masks.get(layer.name)
        if kept is not None:
            mask(layer, kept)
    masked = export_model(graph, proto).whole()
    return masked, reduce(graph, layers, proto)


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """A quiet session on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(loadable(proto).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, feed: Feed) -> list[Array]:
    """All outputs."""
    return session(proto).run(None, feed)


def feed_for(proto: onnx.ModelProto, seed: int = 0, **dimensions: int) -> Feed:
    """Random inputs; named dimensions are taken from `dimensions`, else 3."""
    rng = np.random.default_rng(seed + 1000)
    weights = {t.name for t in proto.graph.initializer}
    feed = {}
    for info in proto.graph.input:
        if info.name in weights:
            continue
        kind = info.type.tensor_type
        shape = [d.dim_value or dimensions.get(d.dim_param, 3) for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        values = rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, 2, size=shape)
        feed[info.name] = values.astype(dtype)
    return feed


def distance(got: Array, want: Array) -> float:
    """‖got − want‖ / ‖want‖."""
    difference = np.linalg.norm(np.asarray(got, dtype=np.float64) - np.asarray(want, dtype=np.float64))
    return float(difference / max(float(np.linalg.norm(np.asarray(want, dtype=np.float64))), 1e-12))


def assert_same(got: list[Array], want: list[Array], tolerance: float = 1e-5) -> None:
    """Equal shapes and types, and values equal to rounding."""
    assert [g.shape for g in got] == [w.shape for w in want]
    assert [g.dtype for g in got] == [w.dtype for w in want]
    assert all(distance(g, w) <= tolerance for g, w in zip(got, want, strict=True))


def operators(proto: onnx.ModelProto) -> list[str]:
    """The operators of the graph in order."""
    return [node.op_type for node in proto.graph.node]


def shape_of(proto: onnx.ModelProto, name: str) -> tuple[int, ...]:
    """The shape of an initializer."""
    return next(tuple(t.dims) for t in proto.graph.initializer if t.name == name)


def every(period: int, count: int, first: int = 0) -> Array:
    """Keeps one of `period` positions."""
    return np.arange(count) % period == first


NEWEST_OPSET = _newest_opset()


def packed_products(proto: onnx.ModelProto) -> int:
    """How many layers of `proto` are DeftGemm nodes or in DeftMlp nodes."""
    nodes = [node for node in proto.graph.node if node.op_type in ("DeftGemm", "DeftMlp")]
    return sum(1 if n.op_type == "DeftGemm" else len(gemms_of(attributes_of(n))) for n in nodes)
