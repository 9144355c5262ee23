"""Regions of a finished graph in 16 bits: measure the ranges, choose, rewrite, and check that only rounding is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnx import helper

from deftonnx import evaluation
from deftonnx.calibration.readers import Feed
from deftonnx.errors import DeftError
from deftonnx.layers import Refusal
from deftonnx.model import Model
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.normalise import import_model, infer_shapes
from deftonnx.rewrite.regions.assign import KINDS, assign, is_float
from deftonnx.rewrite.regions.convert import convert
from deftonnx.rewrite.regions.kernels import BFLOAT16, FLOAT16
from deftonnx.rewrite.skip_norm import fuse_skip_norms

RANGE_SAMPLES = 128
"""Samples that the ranges of activations are measured on: the largest of millions of values moves little with more."""
TOLERANCE = 1e-2
"""‖Δ‖/‖y‖ that rounding to 16 bits may cost an output; where rounding the weights has cost more already, as in deep
networks of random weights, AMPLIFIED times that."""
AMPLIFIED = 2.0
ABSOLUTE_TOLERANCE = 1e-4
"""An output whose norm is below it counts as that large."""


@dataclass
class Narrowed:
    """The type of each node that computes in 16 bits, by its name, and why heavy nodes stay in float32; and what that
    costs an output, ‖Δ‖/‖y‖."""

    kinds: dict[str, str] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    cost: float = 0.0


def to_sixteen_bits(
    graph: gs.Graph,
    origin: onnx.ModelProto,
    expected: evaluation.Outputs,
    feeds: list[Feed],
    probe: list[Feed],
    limit: float = TOLERANCE,
) -> Narrowed:
    """Give `graph`, in place, regions in 16 bits.

    `feeds` measure the ranges; on `probe` the result must equal `expected` but for `limit`, or bfloat16, and then
    float16, is not used.
    """
    infer_shapes(graph)
    fuse_skip_norms(graph)
    ranges = largest_magnitudes(graph, origin, feeds) if feeds else {}
    before = finish(graph, origin, {})
    for kinds in (KINDS, (FLOAT16,)):
        infer_shapes(graph)
        found = assign(graph, ranges, kinds)
        names = {node.name: found.kinds[id(node)] for node in graph.nodes if id(node) in found.kinds}
        if not convert(graph, found):
            return Narrowed({}, found.refusals)
        worst = difference(expected, finish(graph, origin, {}), probe)
        infer_shapes(graph)
        if worst <= limit:
            return Narrowed(names, found.refusals, worst)
        restored = import_model(before)
        graph.nodes, graph.inputs, graph.outputs = restored.nodes, restored.inputs, restored.outputs
        infer_shapes(graph)
        if BFLOAT16 not in names.values():
            break
    reason = f"in float16 an output of the model differs by {worst:.2g}, more than rounding should cost"
    return Narrowed({}, [Refusal("all nodes", "", reason)])


def largest_magnitudes(graph: gs.Graph, origin: onnx.ModelProto, feeds: Iterable[Feed]) -> dict[str, float]:
    """max |x| of every float32 tensor of `graph` on the first RANGE_SAMPLES samples; infinity where one is not finite.

    The maxima are computed inside the model, so that no activation has to be kept.
    """
    names = [t.name for t in graph.tensors().values() if isinstance(t, gs.Variable) and is_float(t)]
    if not names:
        return {}
    model = finish(graph, origin, {})
    part = model.shell.graph
    del part.output[:]
    results = {}
    for serial, name in reversed([*enumerate(names)]):
        results[f"deft_largest_{serial}"] = name
        parts = [f"deft_{part}_{serial}" for part in ("magnitude", "largest")]
        part.node.append(helper.make_node("Abs", [name], [parts[0]]))
        part.node.append(helper.make_node("ReduceMax", [parts[0]], [parts[1]], keepdims=0))
        part.output.append(helper.make_tensor_value_info(parts[1], onnx.TensorProto.FLOAT, []))
    ranges: dict[str, float] = {}
    session, samples = evaluation.session(model, runs_often=False), 0
    for feed in feeds:
        for result, value in evaluation.run(session, [feed]).items():
            reach = float(value.reshape(-1)[0]) if value.size else 0.0
            ranges[results[result]] = max(ranges.get(results[result], 0.0), reach if np.isfinite(reach) else np.inf)
        samples += max((len(a) for a in feed.values() if a.ndim), default=1)
        if samples >= RANGE_SAMPLES:
            break
    return ranges


def difference(expected: evaluation.Outputs, model: Model | onnxruntime.InferenceSession, feeds: list[Feed]) -> float:
    """The largest ‖Δ‖/‖y‖ of a float output; 0 without data, infinity where the model does not run or its outputs
    have other shapes."""
    if not feeds:
        return 0.0
    try:
        return distance(expected, evaluation.outputs(model, feeds))
    except DeftError:
        return float("inf")


def distance(expected: evaluation.Outputs, got: evaluation.Outputs) -> float:
    """The largest ‖Δ‖/‖y‖ of a float output."""
    worst = 0.0
    for name, want in expected.items():
        if got[name].shape != want.shape:
            return float("inf")
        if want.dtype.kind == "f" and want.size:
            have, wanted = evaluation.without_agreed(got[name].astype(np.float64), want.astype(np.float64))
            with np.errstate(invalid="ignore"):
                cost = float(np.linalg.norm(have - wanted)) / max(float(np.linalg.norm(wanted)), ABSOLUTE_TOLERANCE)
            worst = max(worst, cost if np.isfinite(cost) else np.inf)
    return worst
