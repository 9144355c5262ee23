"""The shapes that a graph's tensors have in a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnx import TensorProto, helper

from deftonnx import evaluation
from deftonnx.calibration.readers import Feed
from deftonnx.errors import DeftError
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.normalise import infer_shapes
from deftonnx.rewrite.regions.assign import is_float

Shapes = dict[str, tuple[int, ...]]


@dataclass
class Observed:
    """What was seen in one run: the shapes of all float32 tensors, and the values of outputs and some tensors."""

    shapes: Shapes
    values: evaluation.Outputs


def observed_shapes(graph: gs.Graph, origin: onnx.ModelProto, probe: Feed) -> Shapes | None:
    """The shapes of all float32 tensors in one run; None where the model does not run at this size."""
    (run,) = observe(graph, origin, [probe], [])
    return None if run is None else run.shapes


def observe(
    graph: gs.Graph, origin: onnx.ModelProto, probes: list[Feed], tensors: Iterable[str]
) -> list[Observed | None]:
    """What is seen in a run of each probe, the values of these `tensors` too; None where the model does not run."""
    names = [t.name for t in graph.tensors().values() if isinstance(t, gs.Variable) and is_float(t)]
    model = finish(graph, origin, {})
    infer_shapes(graph)
    shell = model.shell
    made = {output.name for output in shell.graph.output}
    shell.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in made)
    for serial, name in enumerate(names):
        shell.graph.node.append(helper.make_node("Shape", [name], [f"deft_shape_{serial}"]))
        shell.graph.output.append(helper.make_tensor_value_info(f"deft_shape_{serial}", TensorProto.INT64, None))
    try:
        session = evaluation.session(model, runs_often=False, observing=True)
    except DeftError:
        return [None] * len(probes)
    return [_seen(session, probe, names) for probe in probes]


def _seen(session: onnxruntime.InferenceSession, probe: Feed, names: list[str]) -> Observed | None:
    try:
        values = evaluation.run(session, [probe])
    except DeftError:
        return None
    shapes = {name: tuple(int(d) for d in values.pop(f"deft_shape_{i}")) for i, name in enumerate(names)}
    return Observed(shapes, values)
