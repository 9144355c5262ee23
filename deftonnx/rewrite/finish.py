"""From the rewritten graph to the model that is given away."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx

from deftonnx.model import Model
from deftonnx.rewrite.normalise import export_model


def finish(graph: gs.Graph, origin: onnx.ModelProto, metadata: dict[str, str]) -> Model:
    """`graph` as a model like `origin`: shapes inside are stale and go, functions and `metadata` come along."""
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor not in graph.inputs and tensor not in graph.outputs:
            tensor.shape = None
            tensor.dtype = None
    result = export_model(graph, origin)
    model = result.shell
    _set_types(model.graph.input, graph.inputs)
    _set_types(model.graph.output, graph.outputs)
    del model.graph.value_info[:]
    entries = {entry.key: entry.value for entry in model.metadata_props} | metadata
    del model.metadata_props[:]
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    return result


def _set_types(values: Iterable[onnx.ValueInfoProto], tensors: list[gs.Tensor]) -> None:
    """Inputs and outputs are declared as in `origin`, but for their types where a pass has changed these."""
    types = {t.name: t.dtype for t in tensors if t.dtype is not None}
    for value in values:
        if value.name in types and value.type.HasField("tensor_type"):
            value.type.tensor_type.elem_type = dtype_to_onnx(types[value.name])
