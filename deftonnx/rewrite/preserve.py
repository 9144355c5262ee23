"""What onnx-graphsurgeon does not carry through a round trip is taken from the original model instead.

That is: the declared inputs and outputs (sequences, optionals), local functions and their overloads, node documentation
and metadata, attributes of types it does not know, and attributes that are empty lists.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from deftonnx.model_file import bodies

OLDEST_IR = 4
"""Before IR version 4 every initializer had to be an input as well."""
EMPTY = {"value_ints": np.int64, "value_floats": np.float32, "value_strings": np.str_}
"""Attributes of Constant that may be an empty list, and what its value then is an empty tensor of."""


def drop_unwritable(graph: gs.Graph) -> None:
    """Take out of a freshly imported graph what cannot be exported: `restore` puts it back."""
    graph.ir_version = max(graph.ir_version or 0, OLDEST_IR)
    for part in (graph, *graph.functions, *graph.subgraphs(recursive=True)):
        part.import_domains = list(part.import_domains or [])  # the original's own list would grow with ours
    for node in _nodes([graph]):
        for name, value in list(node.attrs.items()):
            if isinstance(value, gs.Constant) and isinstance(value._values, LazyValues):
                node.attrs[name] = gs.Constant(value.name, _copied(value._values))
            if not isinstance(value, list) or value:
                continue
            del node.attrs[name]
            if node.op == "Constant" and name in EMPTY:
                node.attrs["value"] = gs.Constant("", np.zeros(0, dtype=EMPTY[name]))
    for body in graph.subgraphs(recursive=True):
        for constant in {id(t): t for node in body.nodes for t in node.inputs if isinstance(t, gs.Constant)}.values():
            if isinstance(constant._values, LazyValues):
                constant._values = _copied(constant._values)
    for part in [graph, *graph.subgraphs(recursive=True)]:
        for tensor in (*part.inputs, *part.outputs, *part.tensors().values()):
            if isinstance(tensor, gs.Variable) and tensor.type not in (None, "tensor_type"):
                tensor.dtype = tensor.shape = None


def _copied(values: LazyValues) -> LazyValues:
    """The same, of a tensor of our own: exporting renames it."""
    tensor = onnx.TensorProto()
    tensor.CopyFrom(values.tensor)
    return LazyValues(tensor)


def _nodes(graphs: Iterable[gs.Graph]) -> Iterable[gs.Node]:
    for graph in graphs:
        for part in [graph, *graph.functions, *graph.subgraphs(recursive=True)]:
            yield from part.nodes


def restore(model: onnx.ModelProto, like: onnx.ModelProto) -> None:
    """Give the exported `model` back what its original `like` had."""
    _restore_values(model.graph.input, like.graph.input)
    _restore_values(model.graph.output, like.graph.output)
    del model.functions[:]
    model.functions.extend(like.functions)
    _restore_nodes(model.graph, like.graph)
    _share_constants(model.graph, like.graph)
    model.ir_version = max(like.ir_version, OLDEST_IR)
    model.producer_name, model.producer_version = like.producer_name, like.producer_version
    model.domain, model.model_version, model.doc_string = like.domain, like.model_version, like.doc_string
    del model.metadata_props[:]
    model.metadata_props.extend(like.metadata_props)
    del model.graph.metadata_props[:]
    model.graph.metadata_props.extend(like.graph.metadata_props)


def _restore_values(values: Iterable[onnx.ValueInfoProto], originals: Iterable[onnx.ValueInfoProto]) -> None:
    by_name = {value.name: value for value in originals}
    for value in values:
        if value.name in by_name:
            value.CopyFrom(by_name[value.name])


def _share_constants(graph: onnx.GraphProto, like: onnx.GraphProto) -> None:
    """Constants of the main graph that only bodies of If, Loop and Scan read were exported once into each of them."""
    names = {t.name for t in like.initializer}
    names |= {node.output[0] for node in like.node if node.op_type == "Constant"}
    own = {t.name for t in graph.initializer}
    for body in list(bodies(graph))[1:]:
        kept = [t for t in body.initializer if t.name not in names]
        if len(kept) == len(body.initializer):
            continue
        for tensor in body.initializer:
            if tensor.name in names - own:
                graph.initializer.append(tensor)
                own.add(tensor.name)
        copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del body.initializer[:]
        body.initializer.extend(copies)


def _restore_nodes(graph: onnx.GraphProto, like: onnx.GraphProto) -> None:
    """Nodes are recognised by what they make: names may have been given by us."""
    originals = {next(filter(None, node.output), ""): node for node in like.node}
    for node in graph.node:
        original = originals.get(next(filter(None, node.output), ""))
        if original is None or (original.op_type, original.domain) != (node.op_type, node.domain):
            continue
        for field in ("overload", "doc_string"):
            if getattr(original, field):
                setattr(node, field, getattr(original, field))
        node.metadata_props.extend(original.metadata_props)
        have = {attribute.name: attribute for attribute in node.attribute}
        for attribute in original.attribute:
            if attribute.name not in have and _unwritable(attribute, have):
                node.attribute.append(attribute)
            elif attribute.name in have and attribute.type == onnx.AttributeProto.GRAPH:
                _restore_nodes(have[attribute.name].g, attribute.g)


def _unwritable(attribute: onnx.AttributeProto, have: Iterable[str]) -> bool:
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS):
        empty = not (attribute.ints or attribute.floats or attribute.strings or attribute.ref_attr_name)
        return empty and "value" not in have
    return attribute.type in (
        onnx.AttributeProto.TYPE_PROTO,
        onnx.AttributeProto.TYPE_PROTOS,
        onnx.AttributeProto.TENSORS,
        onnx.AttributeProto.GRAPHS,
        onnx.AttributeProto.SPARSE_TENSOR,
        onnx.AttributeProto.SPARSE_TENSORS,
    )
