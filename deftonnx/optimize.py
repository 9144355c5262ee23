"""The main job: from an exported model to a smaller one, its plan, and a report of what was done and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from deftonnx import evaluation, model_file
from deftonnx.calibration import readers
from deftonnx.elimination import sequential
from deftonnx.elimination.choice import Choice, siblings
from deftonnx.errors import DeftError, UnsupportedError, UsageError
from deftonnx.layers import LinearLayer, Refusal, find_layers
from deftonnx.plan import METADATA_KEY, LayerPlan, Plan
from deftonnx.report.report import LayerRow, Report, Size
from deftonnx.rewrite import functions
from deftonnx.rewrite.absorb import absorb as absorb_pass
from deftonnx.rewrite.absorb import readers as readers_of
from deftonnx.rewrite.eliminate import eliminate
from deftonnx.rewrite.normalise import export_model, import_model, normalise
from deftonnx.selection import select
from deftonnx.settings import Settings

BATCH = 64
"""Samples run at once during calibration and evaluation, where the model's batch dimension is free."""
VERIFY_SAMPLES = 64
TOLERANCE = {np.dtype(np.float16): 2e-2}
DEFAULT_TOLERANCE = 1e-3
Progress = Callable[[str, int, int], None]


@dataclass
class Result:
    """What `optimize` gives back."""

    model: onnx.ModelProto
    plan: Plan
    report: Report
    masked: onnx.ModelProto = field(repr=False)
    """The same function with the original's layer shapes, eliminated weights being zero."""

    def save(self, path: str | Path, *, external_data: bool = False) -> None:
        """Write the model to `path`, atomically."""
        if Path(path).resolve() == Path(self.report.model).resolve():
            raise UsageError(f"output '{path}' is the input, which is never touched")
        model_file.save(self.model, path, external_data)
        self.report.output = str(path)


def optimize(
    model: str | Path | onnx.ModelProto,
    *,
    calib_data: Any = None,
    eval_data: Any = None,
    metric: str | None = None,
    plan: Plan | str | Path | None = None,
    measure: bool = True,
    progress: Progress = lambda what, done, total: None,
    **options: Any,
) -> Result:
    """Make an exported model smaller and faster.

    `calib_data` and `eval_data` are whatever `calibration.readers.read` takes, or 'random'. `plan` replays decisions
    of an earlier run. `progress` is called with (what, done, total). `measure` times both models on this CPU.
    Other keywords are the fields of `Settings`, which are the command line's options.

    Raises `DeftError` (see `errors`) with one sentence for anything that cannot be used.
    """
    started = time.perf_counter()
    origin = model if isinstance(model, onnx.ModelProto) else model_file.load(model)
    name = "the model" if isinstance(model, onnx.ModelProto) else str(model)
    model_file.check(origin, _quoted(model))
    asked = Settings(**options)
    evaluation.check_metric(metric)
    evaluation.session(origin, _quoted(model))  # refuse now what ONNX Runtime cannot load
    plan = Plan.read(plan) if isinstance(plan, (str, Path)) else plan
    graph = import_model(origin)
    data = _calibration_data(calib_data, graph, asked)
    has_data = data is not None
    settings = asked.resolve(has_data) if plan is None or asked != Settings() else _from_plan(plan, asked, has_data)
    normalise(graph)
    normal = export_model(graph, origin)
    found = find_layers(graph)
    layers = [f for f in found if isinstance(f, LinearLayer)]
    if not found:
        raise UnsupportedError(f"{_quoted(model)} has no MatMul, Gemm or Conv with constant weights to work on")
    original = import_model(normal)
    originals = [f for f in find_layers(original) if isinstance(f, LinearLayer)]
    earlier = _earlier_plan(origin)
    choices, refusals = select(graph, layers, originals, settings, plan, earlier)
    refusals = [f for f in found if isinstance(f, Refusal)] + refusals
    reading = readers_of(original, originals)
    for choice in choices:
        choice.readers = reading.get(choice.layer.name, [])
    before = {layer.name: (layer.macs(), layer.K) for layer in layers}
    groups = siblings(choices)
    batches = None
    if data is not None:
        batches = readers.batches(data, graph.inputs, settings.calib_samples, settings.seed, BATCH)
    done: list[str] = []

    def finished(choice: Choice) -> None:
        done.append(choice.layer.name)
        progress(f"{choice.layer.op} {choice.layer.name}", len(done), len(choices))

    sequential.eliminate(graph, original, groups, batches, settings.seed, finished)
    masked = export_model(graph, origin)
    result_plan = _record(settings, found, choices, refusals, earlier)
    small, rows, macs = _rewrite(graph, layers, choices, before, settings.absorb)
    final = _finish(small, origin, result_plan)
    feeds = batches or _made_up(graph.inputs, settings.seed)
    warnings = _warnings(asked, settings, calib_data, has_data)
    if feeds:
        _verify(masked, final, feeds)
    else:
        warnings.append("the result was not run: the model's inputs have no fixed shape and there is no data")
    report = Report(
        model=name,
        settings=settings.to_dict(),
        before=_size(origin, sum(m for m, _ in before.values())),
        after=_size(final, macs),
        layers=rows,
        left_alone=refusals,
        warnings=warnings,
    )
    _measure(report, origin, final, feeds, data, eval_data, metric, measure, graph.inputs)
    report.seconds = time.perf_counter() - started
    return Result(final, result_plan, report, masked)


def _quoted(model: Any) -> str:
    return "the model" if isinstance(model, onnx.ModelProto) else f"'{model}'"


def _calibration_data(source: Any, graph: gs.Graph, settings: Settings) -> readers.Dataset | None:
    if source is None:
        return None
    if isinstance(source, str) and source == "random":
        return readers.random_data(graph.inputs, min(settings.calib_samples, 256), settings.seed)
    return readers.read(source, graph.inputs)


def _from_plan(plan: Plan, asked: Settings, has_data: bool) -> Settings:
    """The settings a plan was made with, where the caller named none."""
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plan.settings.items()}
    try:
        return Settings(**known).resolve(has_data)
    except TypeError as error:
        raise UsageError(f"the plan's settings cannot be read: {error}") from error


def _earlier_plan(model: onnx.ModelProto) -> Plan | None:
    """The plan that an earlier run left in the model's metadata."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return Plan.from_json(entry.value, "the plan in the model's metadata")
    return None


def _record(
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
        choice = chosen.get(item.name)
        if choice is None and item.name in known:  # whose sizes are those of the model before that run
            entry = known[item.name]
            entries.append(entry if entry.kept else replace(entry, reason=reasons[item.name]))
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


def _rewrite(
    graph: gs.Graph,
    layers: list[LinearLayer],
    choices: list[Choice],
    before: dict[str, tuple[int, int]],
    absorb: bool,
) -> tuple[gs.Graph, list[LayerRow], int]:
    """Absorb and eliminate in the masked graph; what each layer became, row by row, and the multiply-adds left."""
    chosen = {choice.layer.name: choice for choice in choices}
    kept = {layer.name: int(layer.kept.sum()) // layer.groups for layer in layers}
    while absorb and absorb_pass(graph, layers):
        pass
    forms = {layer.name: _form(layer) for layer in layers}
    macs = {layer.name: layer.macs() for layer in layers}
    ops = {layer.name: layer.op for layer in layers}
    eliminate(graph, layers)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    rows = []
    for layer in layers:
        choice = chosen.get(layer.name)
        if choice is None and macs[layer.name] == before[layer.name][0]:
            continue
        rows.append(
            LayerRow(
                name=layer.name,
                op=ops[layer.name],
                K=before[layer.name][1],
                kept=kept[layer.name],
                granularity=choice.granularity.name if choice else None,
                form=forms[layer.name] if choice else "fewer outputs",
                error=choice.error if choice else None,
                macs_before=before[layer.name][0],
                macs_after=macs[layer.name],
            )
        )
    return graph, rows, sum(macs.values())


def _form(layer: LinearLayer) -> str:
    """How the elimination of a layer is written."""
    if layer.kept.all():
        return "absorbed"
    if not (layer.kept == layer.kept[:, :1]).all():
        return "DeftConv"
    first = layer.kept[0, 0]
    prefix = layer.groups == 1 and bool(first[: int(first.sum())].all())
    return "Slice" if prefix else "Gather"


def _finish(graph: gs.Graph, origin: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """The final model: shapes inside are stale and go, functions and the plan come along."""
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor not in graph.inputs and tensor not in graph.outputs:
            tensor.shape = None
            tensor.dtype = None
    model = export_model(graph, origin)
    del model.graph.value_info[:]
    if any(node.domain == functions.DOMAIN and node.op_type == "DeftConv" for node in model.graph.node):
        others = [f for f in model.functions if f.domain != functions.DOMAIN]
        del model.functions[:]
        model.functions.extend([*others, functions.deft_conv_function(graph.opset)])
        model.ir_version = max(model.ir_version, functions.OLDEST_IR)
    for i, entry in enumerate(model.metadata_props):
        if entry.key == METADATA_KEY:
            del model.metadata_props[i]
            break
    model.metadata_props.add(key=METADATA_KEY, value=plan.to_json())
    return model


def _made_up(inputs: list[gs.Variable], seed: int) -> list[readers.Feed]:
    """One small random batch, where the inputs' shapes allow it, to check the rewrite with."""
    try:
        return readers.random_data(inputs, 1, seed).feeds
    except DeftError:
        return []


def _verify(masked: onnx.ModelProto, final: onnx.ModelProto, feeds: list[readers.Feed]) -> None:
    """The rewritten model must compute what the masked one does, to rounding."""
    few = feeds[:1]
    expected, got = (evaluation.run(evaluation.session(m), few) for m in (masked, final))
    for name, want in expected.items():
        if want.dtype.kind != "f":
            continue
        limit = TOLERANCE.get(want.dtype, DEFAULT_TOLERANCE)
        difference = np.linalg.norm(got[name].astype(np.float64) - want) / max(float(np.linalg.norm(want)), 1e-30)
        if not difference <= limit:
            raise DeftError(
                f"internal check failed: output '{name}' of the result differs from its plan by {difference:.2g};"
                " please report this model, and use --no-absorb meanwhile"
            )


def _warnings(asked: Settings, settings: Settings, source: Any, has_data: bool) -> list[str]:
    warnings = []
    if isinstance(source, str) and source == "random":
        warnings.append("calibrated on random data: expect a large loss of accuracy on real inputs")
    if not has_data and settings.density is None and settings.alpha is None:
        warnings.append(
            "without --calib-data only lossless rewrites were done; with a few hundred samples, layers can be reduced"
        )
    elif not has_data:
        warnings.append("reduced from the weights alone, without calibration data: check the accuracy before use")
    return warnings


def _size(model: onnx.ModelProto, macs: int) -> Size:
    parameters = sum(int(np.prod(t.dims)) for t in model.graph.initializer if len(t.dims) > 0)
    return Size(bytes=model.ByteSize(), parameters=parameters, macs=macs)


def _measure(
    report: Report,
    origin: onnx.ModelProto,
    final: onnx.ModelProto,
    feeds: list[readers.Feed],
    data: readers.Dataset | None,
    eval_data: Any,
    metric: str | None,
    measure: bool,
    inputs: list[gs.Variable],
) -> None:
    """Accuracy on the evaluation data (else on the calibration data) and latency of one sample on this CPU."""
    if not feeds:
        return
    old, new = evaluation.session(origin), evaluation.session(final)
    scored, labels, on = feeds, None, "calibration data"
    if eval_data is not None:
        dataset = readers.read(eval_data, inputs, "the evaluation data")
        scored = readers.batches(dataset, inputs, None, 0, BATCH)
        labels, on = dataset.labels_of(scored), "evaluation data"
    elif data is None:
        on = "made-up inputs"
    chosen = metric or ("top1" if labels is not None else "rel-l2")
    report.accuracy = evaluation.score(chosen, evaluation.run(new, scored), evaluation.run(old, scored), labels)
    report.accuracy_on = on
    if measure:
        one = {name: value[:1] for name, value in feeds[0].items()} if _free_batch(inputs) else feeds[0]
        report.before.latency_ms, report.after.latency_ms = evaluation.latencies([old, new], one)


def _free_batch(inputs: list[gs.Variable]) -> bool:
    return all(t.shape and not (isinstance(t.shape[0], int) and t.shape[0] > 0) for t in inputs)
