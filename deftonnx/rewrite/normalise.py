"""Bring an exported model into the form the other passes expect: named nodes, constants folded, shapes inferred."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from deftonnx import model_file
from deftonnx.errors import UnsupportedError
from deftonnx.formats.attention_function import is_attention
from deftonnx.formats.functions import attach_functions
from deftonnx.layers.linear import StoredValues, is_standard, stored, unused_name
from deftonnx.model import LARGE, Array, Model, is_apart, is_large, reference
from deftonnx.rewrite.absorb.parameters import integers
from deftonnx.rewrite.einsum import products_of_einsums
from deftonnx.rewrite.fold_reshape import MADE_UP, fold_reshape
from deftonnx.rewrite.fold_scale import fold_batch_norm, fold_scales
from deftonnx.rewrite.fold_sizes import fold_sizes
from deftonnx.rewrite.fold_transpose import fold_transpose
from deftonnx.rewrite.joined_rows import keep_rows_apart
from deftonnx.rewrite.preserve import drop_unwritable, restore
from deftonnx.rewrite.randomness import drawing, is_training
from deftonnx.rewrite.reserved import Reserved
from deftonnx.sessions import first_line

FOLD_LIMIT = 1 << 20
"""Constants above this many bytes are not computed by folding (a broadcast could otherwise bloat the model)."""
INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
TEXTS = ("value_string", "value_strings")
"""Attributes of a Constant."""
SMALL = 1024
MOST_ROUNDS = 50
"""Of folding sizes and inferring shapes: each takes seconds for thousands of nodes, and few networks need ten."""
_LAST = np.iinfo(np.int64).max
"""The end of a Slice that takes all to the last."""
SHAPED_LIKE_INPUT = {
    ("com.microsoft", "MultiHeadAttention"),
    ("com.microsoft", "SkipLayerNormalization"),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"),
}
"""Operators that onnx does not know, whose outputs, as we write them, are shaped like their first input."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence onnx-graphsurgeon, which logs to standard output: what matters to a user is said by our own errors."""
    severity, G_LOGGER.severity = G_LOGGER.severity, G_LOGGER.CRITICAL
    onnxruntime.set_default_logger_severity(4)  # folding runs small sessions that warn about single nodes
    try:
        yield
    finally:
        G_LOGGER.severity = severity
        onnxruntime.set_default_logger_severity(2)


def import_model(model: onnx.ModelProto | Model) -> gs.Graph:
    """`model` as a graph whose nodes all have unique names."""
    shell, weights = (model.shell, model.weights) if isinstance(model, Model) else (model, {})
    with quiet():
        try:
            graph = gs.import_onnx(_with_dense_weights(shell))
        except Exception as error:
            raise UnsupportedError(f"the model's graph cannot be read: {first_line(error)}") from error
        for constant in _constants([graph, *graph.subgraphs(recursive=True)]):
            held = constant._values
            if isinstance(held, LazyValues) and not isinstance(held, SparseValues) and is_apart(held.tensor):
                constant._values, constant.data_location = StoredValues(weights[constant.name]), None
        drop_unwritable(graph)
    taken = {n.name for n in graph.nodes}
    seen = {""}
    for node in graph.nodes:
        if node.name in seen:
            stem = node.name or node.op
            node.name = next(name for i in itertools.count() if (name := f"{stem}_{i}") not in taken)
            taken.add(node.name)
        seen.add(node.name)
    return graph


def _with_dense_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without sparse initializers, of which onnx-graphsurgeon loses the type."""
    if not any(body.sparse_initializer for body in model_file.bodies(model.graph)):
        return model
    dense = onnx.ModelProto()
    dense.CopyFrom(model)
    for body in model_file.bodies(dense.graph):
        body.initializer.extend(_dense(tensor) for tensor in body.sparse_initializer)
        del body.sparse_initializer[:]
    return dense


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The same values with their zeros. Indices are of the flat tensor, or one (row, column, ...) a value."""
    values, indices = (onnx.numpy_helper.to_array(t) for t in (sparse.values, sparse.indices))
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(dense, sparse.values.name)


def _constants(graphs: Iterable[gs.Graph]) -> Iterable[gs.Constant]:
    """The constants that nodes of these graphs read, each once."""
    read = (t for graph in graphs for node in graph.nodes for t in node.inputs)
    outputs = (t for graph in graphs for t in graph.outputs)
    return {id(t): t for t in itertools.chain(read, outputs) if isinstance(t, gs.Constant)}.values()


def export_model(graph: gs.Graph, like: onnx.ModelProto) -> Model:
    """`graph` as a model with the inputs, outputs, functions, metadata and documentation of `like`; our own nodes have
    their functions."""
    with quiet(), _weights_apart(graph) as weights:
        shell = gs.export_onnx(graph, do_type_check=False)
    restore(shell, like)
    attach_functions(shell, graph.opset)
    return Model(shell, weights)


@contextlib.contextmanager
def _weights_apart(graph: gs.Graph) -> Iterator[dict[str, Array]]:
    """Until it ends, references take the place of large weights in `graph`; these come by name.

    Those that bodies of If, Loop and Scan read are left: each body would have a reference of its own.
    """
    in_bodies = {id(t) for t in _constants(graph.subgraphs(recursive=True))}
    large = [t for t in _constants([graph]) if id(t) not in in_bodies and _is_large(t)]
    held = [t._values for t in large]
    weights = {t.name: np.ascontiguousarray(stored(t)) for t in large}
    for t in large:
        t._values = LazyValues(reference(t.name, weights[t.name]))
    try:
        yield weights
    finally:
        for t, values in zip(large, held, strict=True):
            t._values = values


def _is_large(constant: gs.Constant) -> bool:
    """Whether a constant is large; if so its values become an array, if they were in a message."""
    held = constant._values
    if isinstance(held, SparseValues) or constant.export_dtype != constant.dtype or held.nbytes <= LARGE:
        return False
    array = stored(constant)
    if not is_large(array):
        return False
    if isinstance(held, LazyValues) and not isinstance(held, StoredValues):
        constant._values = StoredValues(array)
    return True


def normalise(graph: gs.Graph) -> bool:
    """Infer shapes, fold constants, fold BatchNormalization into the layer before it, drop what nobody reads."""
    before = [(n.op, n.name) for n in graph.nodes]
    infer_shapes(graph)
    if products_of_einsums(graph):
        infer_shapes(graph)
    _fold_constants(graph)
    _fold_sizes(graph)
    drop_idle(graph)
    name_constant_outputs(graph)
    if fold_reshape(graph):  # more sizes are known by its targets
        infer_shapes(graph)
        _fold_sizes(graph)
    fold_transpose(graph)
    keep_rows_apart(graph)
    fold_batch_norm(graph)
    fold_scales(graph)
    infer_shapes(graph)
    return before != [(n.op, n.name) for n in graph.nodes]


def _fold_constants(graph: gs.Graph) -> None:
    """Compute what depends on constants alone, and is the same each time."""
    draws = drawing(graph)

    def stays(node: gs.Node) -> bool:
        return draws(node) or _makes_strings(node)

    graph.nodes.extend(_second_readers(graph))
    with quiet():
        graph.fold_constants(
            size_threshold=FOLD_LIMIT, error_ok=True, recurse_subgraphs=False, should_exclude_node=stays
        )
        graph.cleanup(remove_unused_graph_inputs=False)


def _makes_strings(node: gs.Node) -> bool:
    """True where the results are text, of which onnx-graphsurgeon cannot write a constant."""
    kinds = (t.dtype for t in node.outputs)
    return not node.attrs.keys().isdisjoint(TEXTS) or any(kind is not None and kind == np.object_ for kind in kinds)


def _second_readers(graph: gs.Graph) -> list[gs.Node]:
    """Idle nodes, until the next clean-up, that read what Casts to integers do: onnx-graphsurgeon would take the Casts
    from x·0.5 between integers, and make an integer of the 0.5, if nothing else read the product."""
    casts = [node for node in graph.nodes if node.op == "Cast" and node.attrs["to"] in INTEGERS]
    names = [unused_name(f"{node.name}/second_reader") for node in casts]
    return [
        gs.Node("Identity", name, inputs=[node.inputs[0]], outputs=[gs.Variable(name)])
        for node, name in zip(casts, names, strict=True)
    ]


def _fold_sizes(graph: gs.Graph) -> None:
    """Make constants of what depends on known sizes alone: each tells the shapes of more tensors."""
    for _ in range(MOST_ROUNDS):
        before = len(graph.nodes)
        if fold_sizes(graph):
            with quiet():
                graph.cleanup(remove_unused_graph_inputs=False)
        else:
            _fold_constants(graph)
            if before == len(graph.nodes):
                break
        infer_shapes(graph)


def infer_shapes(graph: gs.Graph) -> None:
    """Fill in the shapes and types of a graph's tensors. Weights take part by their shape only."""
    with quiet():
        model = skeleton(graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # shapes stay as the exporter left them; passes that need one then leave the node alone
        return
    tensors = graph.tensors()
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        tensor = tensors.get(info.name)
        if isinstance(tensor, gs.Variable) and info.type.HasField("tensor_type"):
            kind = info.type.tensor_type
            if kind.HasField("shape"):
                tensor.shape = _with_names([_dimension(d) for d in kind.shape.dim], tensor.shape)
            if tensor.dtype is None and kind.elem_type:
                tensor.dtype = _numpy_type(kind.elem_type)


def skeleton(graph: gs.Graph) -> onnx.ModelProto:
    """The model without its large weights: they become inputs, which have a type and shape but no values."""
    weights = {
        name: t for name, t in graph.tensors().items() if isinstance(t, gs.Constant) and np.prod(t.shape) > SMALL
    }
    stripped = graph.copy()
    inputs = []
    for node in stripped.nodes:
        for i, t in enumerate(node.inputs):
            if isinstance(t, gs.Constant) and t.name in weights:
                node.inputs[i] = gs.Variable(t.name, dtype=t.dtype, shape=tuple(t.shape))
                inputs.append(node.inputs[i])
    _stand_in(stripped)
    stripped.inputs = [*stripped.inputs, *{t.name: t for t in inputs}.values()]
    model = gs.export_onnx(stripped, do_type_check=False)
    attach_functions(model, graph.opset)
    return model


def _stand_in(graph: gs.Graph) -> None:
    """Let Identity stand in for what onnx does not know, so that shapes are inferred through it, in order."""
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        nodes.append(node)
        if (node.domain, node.op) in SHAPED_LIKE_INPUT:
            outputs = [t for t in node.outputs if t.name]
            node.op, node.domain, node.attrs = "Identity", None, {}
            node.inputs, node.outputs = node.inputs[:1], outputs[:1]
            nodes += [gs.Node("Identity", t.name, inputs=node.inputs[:1], outputs=[t]) for t in outputs[1:]]
        elif is_attention(node.domain, node.op):  # whose body's shapes onnx cannot follow
            bounds = ([0], [node.attrs["num_heads"] * node.attrs["head_size"]], [-1])
            parts = [gs.Constant(f"{node.name}/{i}", np.array(bound)) for i, bound in enumerate(bounds)]
            node.op, node.domain, node.attrs = "Slice", None, {}
            node.inputs = [node.inputs[0], *parts]
    graph.nodes = nodes


def drop_idle(graph: gs.Graph) -> None:
    """Remove nodes that pass their input through, unless they name a graph output or what a body reads."""
    reserved = Reserved(graph)
    for node in list(graph.nodes):
        if not is_standard(node) or not _is_idle(node):
            continue
        if any(t in reserved for t in node.outputs) or any(t.outputs for t in node.outputs[1:]):
            continue
        if isinstance(node.inputs[0], gs.Constant):
            continue
        source, result = node.inputs[0], node.outputs[0]
        for user in list(result.outputs):
            user.inputs = [source if t is result else t for t in user.inputs]
        node.inputs.clear()
        node.outputs.clear()
        graph.nodes.remove(node)


def _is_idle(node: gs.Node) -> bool:
    """True for Identity, Dropout outside of training, a Pad by nothing, a Slice of everything, a Cast to the same."""
    if node.op == "Dropout":
        return not is_training(node)
    if node.op == "Pad":
        pads = integers(node, "pads", 1)
        return pads is not None and not any(pads)
    if node.op == "Cast":
        kind = node.inputs[0].dtype
        return kind is not None and dtype_to_onnx(kind) == node.attrs["to"]
    return node.op == "Identity" or (node.op == "Slice" and _is_whole(node))


def _is_whole(node: gs.Node) -> bool:
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    axes, steps = integers(node, "axes", 3), integers(node, "steps", 4)
    shape = node.inputs[0].shape
    given = all(isinstance(t, gs.Constant) or not t.name for t in node.inputs[1:])
    if starts is None or ends is None or shape is None or not given or any(step != 1 for step in steps or []):
        return False
    sizes = [shape[axis] for axis in (range(len(starts)) if axes is None else axes)]
    return all(
        start == 0 and (end == _LAST or (isinstance(size, int) and end >= size))
        for start, end, size in zip(starts, ends, sizes, strict=True)
    )


def name_constant_outputs(graph: gs.Graph) -> None:
    """Return a copy of a constant that is a graph output, so that other readers' edits leave the output alone."""
    for i, tensor in enumerate(graph.outputs):
        if isinstance(tensor, gs.Constant):
            output = gs.Variable(tensor.name, tensor.dtype, tensor.shape)
            copy = gs.Constant(unused_name(tensor.name), tensor.values)  # a renamed one would rename its source too
            for user in list(tensor.outputs):
                user.inputs = [copy if t is tensor else t for t in user.inputs]
            graph.outputs[i] = output
            graph.nodes.append(gs.Node("Identity", copy.name, inputs=[copy], outputs=[output]))


def _with_names(inferred: list[int | str | None], known: Any) -> list[int | str | None]:
    """The inferred sizes; where nothing is known of one, the name that it had."""
    if known is None or len(known) != len(inferred):
        return inferred
    return [
        old if isinstance(old, str) and not old.startswith(MADE_UP) and not _is_told(new) else new
        for old, new in zip(known, inferred, strict=True)
    ]


def _is_told(size: int | str | None) -> bool:
    return isinstance(size, int) or (size is not None and not size.startswith(MADE_UP))


def _dimension(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) if dim.HasField("dim_param") else None


def _numpy_type(elem_type: int) -> Any:
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    except KeyError:
        return elem_type
