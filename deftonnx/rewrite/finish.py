"""From the rewritten graph to the model that is given away."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from deftonnx.rewrite import functions
from deftonnx.rewrite.normalise import export_model


def finish(graph: gs.Graph, origin: onnx.ModelProto, metadata: dict[str, str]) -> onnx.ModelProto:
    """`graph` as a model like `origin`: shapes inside are stale and go, functions and `metadata` come along."""
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor not in graph.inputs and tensor not in graph.outputs:
            tensor.shape = None
            tensor.dtype = None
    model = export_model(graph, origin)
    del model.graph.value_info[:]
    functions.attach_functions(model, graph.opset)
    entries = {entry.key: entry.value for entry in model.metadata_props} | metadata
    del model.metadata_props[:]
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    return model
