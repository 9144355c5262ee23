"""Which layers a run reduces, at which granularity, and why the others are left alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.cost.judge import Judge, Verdict
from deftonnx.cost.units import Ways
from deftonnx.elimination.choice import CRITERIA, Choice
from deftonnx.elimination.groups import CHANNEL, ELEMENT, HEAD, Granularity
from deftonnx.elimination.refit import REFITS
from deftonnx.errors import UsageError
from deftonnx.formats.conv_function import IMAGE_AXES
from deftonnx.formats.conv_function import OPERATOR as DEFT_CONV
from deftonnx.formats.functions import OLDEST_OPSET
from deftonnx.formats.mlp_function import OPERATOR as DEFT_MLP
from deftonnx.layers import LinearLayer, Refusal
from deftonnx.layers.conv import ConvLayer
from deftonnx.layers.linear import stored, unused_name
from deftonnx.plan import LayerPlan, Plan
from deftonnx.rewrite import pack, packed_conv
from deftonnx.rewrite.absorb import Source, absorbable
from deftonnx.rewrite.joined_layers import Joined
from deftonnx.settings import AUTO, FASTEST, FP32, Settings, check_format

GRAM_LIMIT = 13000
"""Largest K whose statistics fit: three float64 matrices of K² are 4 GB there."""
GATHER_COST = {"scattered": 300, "planes": 200}
"""Multiply-adds that take as long as copying one number by a Gather that nobody absorbs: along the last axis, number
by number; and along an axis before it, whole planes at a time, where ONNX Runtime's blocked layout is given up too
(benchmarks/gather_cost.py measures both)."""


def select(
    graph: gs.Graph,
    layers: list[LinearLayer],
    originals: list[LinearLayer],
    settings: Settings,
    plan: Plan | None,
    earlier: Plan | None,
    judge: Judge | None = None,
) -> tuple[list[Choice], list[Refusal]]:
    """A choice for every layer to reduce, in graph order, and a refusal for every other: `judge` says what pays."""
    planned = _planned(plan, layers)
    reduced = {entry.name: entry.density for entry in earlier.layers if entry.kept} if earlier else {}
    edges = _edges(graph, layers, settings)
    free = absorbable(graph, layers) if settings.absorb else {}
    choices, refusals = [], []
    for layer, original in zip(layers, originals, strict=True):
        entry = planned.get(layer.name)
        reason = excluded(layer.name, layer.op, settings) or edges.get(layer.name)
        if entry is not None:
            reason = entry.reason
        elif (done := reduced.get(layer.name)) is not None and (settings.density or 1) >= done - 0.02:
            reason = f"an earlier run reduced it to density {done:g}"
        outcome = reason or _choose(layer, original, settings, entry, graph.opset, free.get(layer.name), layers, judge)
        if isinstance(outcome, Choice) and not _finite(layer):
            outcome = "its weight or bias holds NaN or infinite values"
        if isinstance(outcome, str):
            refusals.append(Refusal(layer.name, layer.op, outcome))
        else:
            choices.append(outcome)
    return choices, refusals


def _planned(plan: Plan | None, layers: list[LinearLayer]) -> dict[str, LayerPlan]:
    if plan is None:
        return {}
    known = {layer.name for layer in layers}
    for entry in plan.layers:
        if entry.name not in known and entry.reason is None:
            raise UsageError(f"the plan names a layer '{entry.name}' that the model does not have")
        for field, value, table in (("criterion", entry.criterion, CRITERIA), ("refit", entry.refit, REFITS)):
            if value is not None and value not in table:
                raise UsageError(
                    f"the plan's {field} '{value}' of layer '{entry.name}' is not one of {', '.join(table)}"
                )
        if entry.format is not None:
            check_format(entry.format, f"the plan's format of layer '{entry.name}'")
    return {entry.name: entry for entry in plan.layers}


def excluded(name: str, op: str, settings: Settings) -> str | None:
    """The reason if the user's options leave a layer of that name and operator alone."""
    for pattern in settings.nodes_to_exclude:
        if re.search(pattern, name):
            return f"excluded by --nodes-to-exclude {pattern}"
    if op in settings.op_types_to_exclude:
        return f"excluded by --op-types-to-exclude {op}"
    return None


def idle_exclusions(found: list[LinearLayer | Refusal], settings: Settings) -> list[str]:
    """What of the user's exclusions matches no node that multiplies by weights, in words."""
    patterns = [p for p in settings.nodes_to_exclude if not any(re.search(p, x.name) for x in found)]
    types = sorted(set(settings.op_types_to_exclude) - {x.op for x in found})
    return [
        *(f"--nodes-to-exclude {pattern} matches no layer" for pattern in patterns),
        *(f"--op-types-to-exclude {op}: no layer is one" for op in types),
    ]


def _finite(layer: LinearLayer) -> bool:
    return all(np.isfinite(stored(t)).all() for t in layer.node.inputs if isinstance(t, gs.Constant))


def _edges(graph: gs.Graph, layers: list[LinearLayer], settings: Settings) -> dict[str, str]:
    """Layers with no linear layer before them, and with none after them."""
    by_node = {id(layer.node): layer.name for layer in layers}
    after: dict[int, bool] = {}  # tensor → some linear layer comes before it
    first, last = set(), set(by_node.values())
    sources: dict[int, frozenset[str]] = {}  # tensor → the nearest layers it comes from
    for node in graph.nodes:
        name = by_node.get(id(node))
        nearest = frozenset[str]().union(*(sources.get(id(t), frozenset()) for t in node.inputs))
        if name is not None:
            if not any(after.get(id(t), False) for t in node.inputs):
                first.add(name)
            last -= nearest
        for t in node.outputs:
            after[id(t)] = name is not None or any(after.get(id(i), False) for i in node.inputs)
            sources[id(t)] = frozenset([name]) if name is not None else nearest
    reasons = {}
    if settings.keep_first:
        reasons.update(dict.fromkeys(first, "the first layer is kept (--no-keep-first to reduce it)"))
    if settings.keep_last:
        reasons.update(dict.fromkeys(last, "the last layer is kept (--no-keep-last to reduce it)"))
    return reasons


def _choose(
    layer: LinearLayer,
    original: LinearLayer,
    settings: Settings,
    entry: LayerPlan | None,
    opset: int,
    source: Source | None,
    layers: list[LinearLayer],
    judge: Judge | None,
) -> Choice | str:
    """The choice for one layer, or the reason to leave it alone."""
    wanted = (entry.granularity if entry else None) or settings.granularity
    density = entry.density if entry and entry.density is not None else settings.density
    if density is None and settings.alpha is None:
        return "nothing to eliminate without calibration data"
    head_size = _head_size(layer)
    if wanted == HEAD:
        wanted = f"{HEAD}:{head_size}" if head_size else AUTO
    pays = False
    if wanted in (AUTO, FASTEST):
        verdict = _judged(layer, settings, opset, density, source, layers, judge)
        if verdict.reason is not None:
            return verdict.reason
        pays = verdict.granularity is not None
        wanted = verdict.granularity or _automatic(layer, settings, opset)
    granularity = Granularity.parse(wanted).fit(layer.taps, layer.channels)
    choice = Choice(
        layer,
        original,
        granularity,
        1.0 if density is None else density,
        settings.alpha if entry is None or entry.density is None else None,
        (entry.criterion if entry else None) or settings.criterion or "obs",
        (entry.refit if entry else None) or settings.refit or "least-squares",
    )
    units = len(granularity.groups(layer.taps, layer.channels))
    if entry is not None and entry.kept is not None:
        choice.units = _planned_units(entry, layer, units)
    elif choice.alpha is None and (density == 1 or units == 1):
        return "it has one unit of features, which must stay" if units == 1 else "density 1 keeps everything"
    if choice.needs_data and layer.K > GRAM_LIMIT:
        gigabytes = 3 * 8 * layer.K**2 / 1e9
        return f"its statistics would take {gigabytes:.0f} GB; --criterion magnitude --refit scale does without"
    kept_conv = isinstance(layer, ConvLayer) and layer.taps > 1 and granularity.name != CHANNEL
    if kept_conv and settings.portable:
        return f"granularity {granularity.name} of a {layer.op} needs an ai.deftonnx node, which --portable forbids"
    if kept_conv and opset < OLDEST_OPSET:
        return f"granularity {granularity.name} of a {layer.op} needs opset {OLDEST_OPSET}, the model has {opset}"
    # an attention drops whole heads alone
    absorbed = source is not None and (head_size is None or granularity.name.startswith(HEAD))
    explicit = settings.granularity not in (AUTO, FASTEST, HEAD) or (
        entry is not None and entry.granularity is not None
    )
    if not kept_conv and not absorbed and not explicit and not pays:
        return _unpaid(layer, layers, choice) or choice
    return choice


def _automatic(layer: LinearLayer, settings: Settings, opset: int) -> str:
    """Channel for a Conv, whose standard operators are faster everywhere; blocks on CUDA, where a kernel skips them."""
    if layer.taps == 1:
        return ELEMENT
    blocks = settings.target == "cuda" and not settings.portable and opset >= OLDEST_OPSET
    served = not isinstance(layer, ConvLayer) or len(layer.kernel) in IMAGE_AXES
    return "block:32" if blocks and served else CHANNEL


def _judged(
    layer: LinearLayer,
    settings: Settings,
    opset: int,
    density: float | None,
    source: Source | None,
    layers: list[LinearLayer],
    judge: Judge | None,
) -> Verdict:
    """What `judge` says; nothing where it cannot, or everything is kept."""
    if judge is None or density in (None, 1):
        return Verdict()
    if isinstance(layer, ConvLayer):
        known = None if layer.x.shape is None else list(layer.x.shape)[2:]
        packable = settings.precision != "keep" and packed_conv.refuse(layer.node, opset, known) is None
    else:
        packable = pack.refuse(layer, opset) is None
    packable = packable and settings.format != FP32 and not settings.portable
    whole = None if source is None else _whole(layer, source, layers)
    coarse = settings.granularity == FASTEST
    ways = Ways(packable, coarse, whole, [] if source is None else source.makers)
    return judge.granularity(layer, float(density), ways) or Verdict()


def _whole(layer: LinearLayer, source: Source, layers: list[LinearLayer]) -> str:
    """The granularity at which what makes the layer's features leaves them out: the same for all that read them."""
    if any(other.x is layer.x and other.taps > 1 for other in layers):
        return CHANNEL
    if source.unit == 1:
        return ELEMENT
    return f"{CHANNEL if _head_size(layer) is None else HEAD}:{source.unit}"


def _head_size(layer: LinearLayer) -> int | None:
    """The features of a head where the heads of an attention are the features of `layer`."""
    maker = layer.x.inputs[0] if len(layer.x.inputs) == 1 else None
    if maker is None or maker.op != "MultiHeadAttention" or layer.channels % maker.attrs["num_heads"]:
        return None
    return int(layer.channels // maker.attrs["num_heads"])


def _unpaid(layer: LinearLayer, layers: list[LinearLayer], choice: Choice) -> str | None:
    """The reason if a Gather that nobody absorbs would cost more than the smaller product saves."""
    sharing = [other for other in layers if other.x is layer.x and other.geometry == layer.geometry]
    saved = sum(other.macs() for other in sharing) * (1 - choice.density)
    copied = layer.input_positions() * layer.input_features * choice.density
    planes = layer.input_axis != -1 and layer.x.shape is not None and len(layer.x.shape) > layer.input_axis + 1
    if saved >= GATHER_COST["planes" if planes else "scattered"] * copied:
        return None
    return "its Gather could not be absorbed and would cost more than it saves"


def _planned_units(entry: LayerPlan, layer: LinearLayer, units: int) -> list[np.ndarray[Any, Any]]:
    assert entry.kept is not None
    kept = [np.unique(np.asarray(row, dtype=np.int64)) for row in entry.kept]
    lengths = {len(row) for row in kept}
    if len(kept) != layer.groups or len(lengths) != 1 or lengths == {0}:
        raise UsageError(f"the plan's kept units of layer '{entry.name}' do not fit its {layer.groups} groups")
    if any(row[0] < 0 or row[-1] >= units for row in kept):
        raise UsageError(f"the plan keeps units of layer '{entry.name}' outside 0 to {units - 1}")
    return kept


def record(
    settings: Settings,
    found: list[LinearLayer | Refusal],
    choices: list[Choice],
    refusals: list[Refusal],
    earlier: Plan | None,
) -> Plan:
    """The plan of this run, in graph order; layers that only an earlier run reduced or shrank keep its entry."""
    chosen = {choice.layer.name: choice for choice in choices}
    reasons = {refusal.name: refusal.reason for refusal in refusals}
    known = {entry.name: entry for entry in earlier.layers} if earlier else {}
    entries = []
    for item in found:
        if item.op == DEFT_MLP and (layers := [entry for entry in known.values() if entry.joined == item.name]):
            entries += layers
            continue
        choice = chosen.get(item.name)
        packed = item.op == DEFT_CONV
        earlier_name = item.name.removesuffix(unused_name("")) if packed else item.name
        if choice is None and earlier_name in known:  # whose sizes are those of the model before that run
            entry = known[earlier_name]
            done = packed or entry.kept or entry.format not in (None, FP32)
            entries.append(entry if done else replace(entry, reason=reasons[item.name]))
            continue
        entry = LayerPlan(item.name, item.op)
        if isinstance(item, LinearLayer):
            entry.K, entry.N, entry.groups = item.K, item.N, item.groups
        if choice is None:
            entry.reason = reasons[item.name]
        else:
            assert choice.units is not None
            entry.granularity, entry.criterion, entry.refit = (
                choice.granularity.name,
                choice.criterion,
                choice.refit,
            )
            entry.density = round(float(choice.layer.kept.mean()), 6)
            entry.kept = [[int(unit) for unit in row] for row in choice.units]
            entry.error = None if choice.error is None else float(f"{choice.error:.6g}")
        entries.append(entry)
    return Plan(settings.to_dict(), entries)


def record_joined(plan: Plan, joined: Iterable[Joined]) -> None:
    """Write into the entries of `plan` which layers are one node."""
    names = {layer: node.name for node in joined for layer in node.layers}
    plan.layers[:] = [replace(entry, joined=names.get(entry.name, entry.joined)) for entry in plan.layers]
