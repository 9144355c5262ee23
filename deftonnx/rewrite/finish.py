"""From the rewritten graph to the model that is given away."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx

from deftonnx.formats.conv_function import is_conv
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


def tell_image_sizes(model: Model) -> None:
    """Write down the sizes of the images that DeftConv nodes read, as far as they are known whatever the batch.

    ONNX Runtime cannot infer what the operator library makes of them, and hands this to the library when a session is
    made, which then knows of all its convolutions in the first run.
    """
    graph = model.shell.graph
    read = {node.input[0] for node in graph.node if is_conv(node.domain, node.op_type)}
    if not read:
        return
    try:
        inferred = onnx.shape_inference.infer_shapes(model.shell).graph.value_info
    except Exception:  # no sizes are known: the library learns them one by one
        return
    for value in inferred:
        dimensions = value.type.tensor_type.shape.dim
        if value.name in read and dimensions and all(d.dim_value > 0 for d in dimensions[1:-1]):
            for free in (dimensions[0], dimensions[-1]):
                if not free.HasField("dim_value"):
                    free.Clear()
            graph.value_info.append(value)


def _set_types(values: Iterable[onnx.ValueInfoProto], tensors: list[gs.Tensor]) -> None:
    """Inputs and outputs are declared as in `origin`, but for their types where a pass has changed these."""
    types = {t.name: t.dtype for t in tensors if t.dtype is not None}
    for value in values:
        if value.name in types and value.type.HasField("tensor_type"):
            value.type.tensor_type.elem_type = dtype_to_onnx(types[value.name])
