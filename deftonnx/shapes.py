"""The shapes that a graph's tensors have in a run."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from deftonnx import evaluation
from deftonnx.calibration.readers import Feed
from deftonnx.errors import DeftError
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.normalise import infer_shapes
from deftonnx.rewrite.regions.assign import is_float

Shapes = dict[str, tuple[int, ...]]


def observed_shapes(graph: gs.Graph, origin: onnx.ModelProto, probe: Feed) -> Shapes | None:
    """The shapes of all float32 tensors in one run; None where the model does not run at this size."""
    names = [t.name for t in graph.tensors().values() if isinstance(t, gs.Variable) and is_float(t)]
    model = finish(graph, origin, {})
    infer_shapes(graph)
    del model.graph.output[:]
    for serial, name in enumerate(names):
        model.graph.node.append(helper.make_node("Shape", [name], [f"deft_shape_{serial}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"deft_shape_{serial}", TensorProto.INT64, None))
    try:
        values = evaluation.outputs(model, [probe])
    except DeftError:
        return None
    return {name: tuple(int(d) for d in values[f"deft_shape_{i}"]) for i, name in enumerate(names)}
