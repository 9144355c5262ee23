"""The main job: from an exported model to a smaller one, its plan, and a report of what was done and what it cost."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import onnxruntime

from deftonnx import assemble, evaluation, model_file, precision
from deftonnx.allocation import free_cycles
from deftonnx.calibration import readers
from deftonnx.deciding import judge_for
from deftonnx.elimination import sequential
from deftonnx.elimination.choice import Choice, siblings
from deftonnx.errors import DeftError, UnsupportedError, UsageError
from deftonnx.format_selection import record_formats
from deftonnx.layers import LinearLayer, PackedGemm, Refusal, find_layers
from deftonnx.model import Model, apart
from deftonnx.plan import METADATA_KEY, Plan, earlier_plan
from deftonnx.presets import with_preset
from deftonnx.report.measure import BATCH, PROBE, first_samples, measure_on_gpu, scored_data, size
from deftonnx.report.measure import measure as measure_into
from deftonnx.report.report import Report
from deftonnx.rewrite.absorb import readers as readers_of
from deftonnx.rewrite.finish import finish, tell_image_sizes
from deftonnx.rewrite.fold_transpose import fold_transpose
from deftonnx.rewrite.narrow import OLDEST_OPSET
from deftonnx.rewrite.newer_opset import standard_opset, with_newer_opset
from deftonnx.rewrite.normalise import export_model, import_model, normalise, quiet
from deftonnx.rewrite.one_pixel import products_of_pixels
from deftonnx.rewrite.randomness import draws_random_numbers
from deftonnx.rewrite.widen import widen
from deftonnx.runtime.made_up_inputs import rows_picked
from deftonnx.selection import excluded, idle_exclusions, record, record_joined, select
from deftonnx.settings import AUTOMATIC, FASTEST, Settings
from deftonnx.transformers import fuse_transformers

Progress = Callable[[str, int, int], None]
LENGTHS = (128, 16, 1024, 16384)
"""Of a made-up sample where the model leaves lengths free, until it runs: sequences and images, shorter ones, sound."""
MOST_VALUES, MOST_TOKENS = 1 << 17, 128
"""Of an input in a made-up sample. Attention takes the square of the tokens: a model that fails with these is left."""

MOST_PLACES = 1024
"""Of an input in a made-up sample, unless the model fails with fewer: all pixels of an image may be tokens."""


@dataclass
class Result:
    """What `optimize` gives back."""

    parts: Model
    plan: Plan
    report: Report

    @functools.cached_property
    def model(self) -> onnx.ModelProto:
        """The model as one message."""
        return self.parts.whole()

    def save(self, path: str | Path, *, external_data: bool = False) -> None:
        """Write the model to `path`, atomically."""
        if Path(path).resolve() == Path(self.report.model).resolve():
            raise UsageError(f"output '{path}' is the input, which is never touched")
        model_file.save(self.parts, path, external_data, Path(self.report.model))
        self.report.output = str(path)


@quiet()
def optimize(
    model: str | Path | onnx.ModelProto,
    *,
    calib_data: Any = None,
    eval_data: Any = None,
    metric: str | None = None,
    plan: Plan | str | Path | None = None,
    measure: bool = True,
    progress: Progress = lambda what, done, total: None,
    preset: str | None = None,
    **options: Any,
) -> Result:
    """Make an exported model smaller and faster.

    `calib_data` and `eval_data` are whatever `calibration.readers.read` takes, or 'random'. `plan` replays decisions
    of an earlier run. `progress` is called with (what, done, total). `measure` times both models on this CPU.
    Other keywords are the fields of `Settings`, which are the command line's options; `preset` names a combination of
    them (see presets.py).

    Raises `DeftError` (see `errors`) with one sentence for anything that cannot be used.
    """
    started = time.perf_counter()
    loaded = _loaded(model)
    origin = loaded.shell
    evaluation.check_metric(metric)
    session = evaluation.session(loaded, _quoted(model), runs_often=False)  # refuse now what cannot be loaded
    asked = Settings(**with_preset(preset, options))
    graph = import_model(loaded)
    plan = Plan.read(plan) if isinstance(plan, (str, Path)) else plan
    has_data = calib_data is not None
    settings = asked.resolve(has_data) if plan is None or asked != Settings() else _of_plan(plan, has_data)
    data = _calibration_data(calib_data, graph, origin, settings)
    feeds, made = _feeds(data, graph.inputs, origin, settings, session)
    before = size(loaded)
    random = draws_random_numbers(graph)  # no two runs of it agree
    probe = [] if random else [first_samples(feed, graph.inputs, PROBE) for feed in feeds[:1]]
    given = evaluation.outputs(session, probe) if made is None else made
    outdated = None
    if settings.may_pack and standard_opset(origin) < OLDEST_OPSET:
        loaded, outdated = _upgraded(loaded, given, probe)
        origin, graph = loaded.shell, import_model(loaded)
    if settings.precision != "keep" and not settings.portable:
        graph = _widened(loaded, graph, given, probe)
    if settings.io_types == "bfloat16" and outdated is not None:
        raise UnsupportedError(f"--io-types bfloat16 needs opset {OLDEST_OPSET}, but {outdated}")
    del session, loaded  # and their weights: the model is read again where it is timed, or run on data
    scored = scored_data(eval_data, graph.inputs, feeds, has_data)

    normalise(graph)
    if settings.target == "cuda" and settings.precision != "keep":
        fold_transpose(graph, twice=True)
        products_of_pixels(graph, lambda node: excluded(node.name, node.op, settings) is None)
    within = assemble.rounding_within(origin)
    assemble.verify(given, export_model(graph, origin), probe, within, assemble.DIFFERENT_PREPARED)
    del given
    unfused: list[Refusal] = []
    if settings.precision != "keep":
        unfused = fuse_transformers(graph, origin, feeds[:1], settings.portable)
    original = import_model(export_model(graph, origin))
    found = find_layers(graph)
    if not found:
        raise UnsupportedError(f"{_quoted(model)} has no MatMul, Gemm or Conv with constant weights to work on")
    layers, originals = ([f for f in x if isinstance(f, LinearLayer)] for x in (found, find_layers(original)))
    earlier = earlier_plan(origin)
    judge = None
    if plan is None:  # which has decided already
        judge = judge_for(settings, graph, origin, feeds, lambda what: progress(what, 0, 0))
    if judge is not None:
        judge.remember(layers)
    choices, refusals = select(graph, layers, originals, settings, plan, earlier, judge)
    refusals = [f for f in found if isinstance(f, Refusal)] + refusals
    sizes = assemble.before(layers)
    packed_macs = sum(item.macs for item in found if isinstance(item, PackedGemm))

    reading = readers_of(original, originals)
    for choice in choices:
        choice.readers = reading.get(choice.layer.name, [])
    counter = itertools.count(1)

    def finished(choice: Choice) -> None:
        progress(f"{choice.layer.op} {choice.layer.name}", next(counter), len(choices))

    batches = feeds if has_data else None
    sequential.eliminate(graph, original, siblings(choices), batches, settings.seed, finished)
    del original, originals, reading
    free_cycles()  # with their weights
    result_plan = record(settings, found, choices, refusals, earlier)
    done = assemble.assemble(graph, origin, layers, choices, sizes, settings, plan, batches, probe, judge)
    record_formats(result_plan, done.formats, done.unpacked)
    record_joined(result_plan, done.joined)
    final = finish(graph, origin, {METADATA_KEY: result_plan.to_json()})
    tell_image_sizes(final)

    report = Report(
        model="the model" if isinstance(model, onnx.ModelProto) else str(model),
        settings=settings.to_dict(),
        before=replace(before, macs=sum(was.macs for was in sizes.values()) + packed_macs),
        after=replace(size(final), macs=done.macs + packed_macs),
        layers=done.rows,
        left_alone=refusals,
        left_unpacked=done.unpacked,
        left_in_float32=unfused + done.in_float32,
        left_apart=done.apart,
        warnings=([] if outdated is None else [f"nothing is packed: {outdated}"])
        + idle_exclusions(found, settings)
        + _warnings(settings, calib_data, bool(feeds), random, done, plan is not None or judge is not None),
    )
    if feeds:
        timed = first_samples(feeds[0], graph.inputs, 1) if measure and settings.target != "cuda" else None
        new = evaluation.session(final, runs_often=timed is not None or len(scored[0]) > 1)
        limit = max(assemble.rounding(settings, done.formats), 2 * done.codes)
        narrowed = settings.io_types != "keep"
        assemble.verify(done.expected, new, probe, limit, narrowed=narrowed)
        reference = made if eval_data is None else None
        measure_into(report, lambda: _loaded(model), new, scored, reference, metric, timed)
        del new
        if measure and judge is not None and judge.measures:
            measure_on_gpu(report, _loaded(model), final, feeds[0], judge.batches)
    report.seconds = time.perf_counter() - started
    return Result(final, result_plan, report)


def _loaded(model: str | Path | onnx.ModelProto) -> Model:
    if isinstance(model, onnx.ModelProto):
        model_file.check(model, _quoted(model))
    parts = apart(model) if isinstance(model, onnx.ModelProto) else model_file.load(model)
    model_file.check_sizes(parts, _quoted(model))
    return parts


def _upgraded(model: Model, given: evaluation.Outputs, probe: list[readers.Feed]) -> tuple[Model, str | None]:
    """`model` at an opset at which weights can be packed, if it then computes what is `given` of it on `probe`; if not,
    as it is, and a sentence that says why."""
    try:
        if not probe:
            raise UnsupportedError("it could not be run to compare it with what it would become")
        newer = with_newer_opset(model)
        assemble.verify(given, newer, probe, assemble.rounding_within(model.shell), "the converted model differs {}")
        return newer, None
    except DeftError as error:
        reason = str(error).removeprefix("internal check failed: ")
        return model, f"the model stays at opset {standard_opset(model.shell)} ({reason})"


def _widened(model: Model, graph: gs.Graph, given: evaluation.Outputs, probe: list[readers.Feed]) -> gs.Graph:
    """`graph`, which is `model`, in float32 where it is in float16, if it then computes what is `given`."""
    if not probe or not widen(graph):
        return graph
    try:
        assemble.verify(given, export_model(graph, model.shell), probe, assemble.rounding_within(model.shell))
    except DeftError:  # values that only float16 makes infinite, for one
        return import_model(model)
    return graph


def _quoted(model: Any) -> str:
    return "the model" if isinstance(model, onnx.ModelProto) else f"'{model}'"


def _calibration_data(
    source: Any, graph: gs.Graph, origin: onnx.ModelProto, settings: Settings
) -> readers.Dataset | None:
    if source is None:
        return None
    if isinstance(source, str) and source == "random":
        return readers.random_data(graph.inputs, min(settings.calib_samples, 256), settings.seed, _rows(origin))
    return readers.read(source, graph.inputs)


def _rows(model: onnx.ModelProto) -> dict[str, int]:
    """Rows of the tables that inputs pick from, by the name of the input."""
    found = {value.name: rows_picked(model, value.name) for value in model.graph.input}
    return {name: rows for name, rows in found.items() if rows}


def _of_plan(plan: Plan, has_data: bool) -> Settings:
    """The settings a plan was made with, for a caller who named none."""
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plan.settings.items()}
    if not has_data and known.get("density") is None and known.get("alpha") is None:
        known.update(criterion=None, refit=None)  # a run without data, which eliminated nothing
    try:
        return Settings(**known).resolve(has_data)
    except TypeError as error:
        raise UsageError(f"the plan's settings cannot be read: {error}") from error


def _feeds(
    data: readers.Dataset | None,
    inputs: list[gs.Variable],
    origin: onnx.ModelProto,
    settings: Settings,
    session: onnxruntime.InferenceSession,
) -> tuple[list[readers.Feed], evaluation.Outputs | None]:
    """Calibration batches; without data one small made-up batch to check the rewrite with, if the model takes it, and
    what the model makes of it."""
    if data is not None:
        return readers.batches(data, inputs, settings.calib_samples, settings.seed, BATCH), None
    for length in _lengths(inputs):
        with contextlib.suppress(DeftError):
            feeds = readers.random_data(inputs, 1, settings.seed, _rows(origin), length).feeds
            return feeds, evaluation.run(session, feeds)
    return [], None


def _lengths(inputs: list[gs.Variable]) -> list[int | None]:
    """What free lengths to try in a made-up sample; None where there are none."""
    if not readers.has_free_lengths(inputs):
        return [None]
    tokens = any(t.dtype is not None and readers.is_of_integers(t) for t in inputs)
    lengths = [
        length
        for length in LENGTHS
        if all(readers.values_in_sample(t, length) <= MOST_VALUES for t in inputs)
        and (length <= MOST_TOKENS or not tokens)
    ]
    # attention may take the square of the places
    return [*sorted(lengths, key=lambda n: any(readers.places_in_sample(t, n) > MOST_PLACES for t in inputs))]


def _warnings(
    settings: Settings, source: Any, ran: bool, random: bool, done: assemble.Assembled, decided: bool
) -> list[str]:
    """`random`: the model gives other outputs in each run. `decided`: a plan or a judge said in what units features
    go, if it was asked."""
    warnings = []
    lossless = settings.density is None and settings.alpha is None
    if isinstance(source, str) and source == "random":
        warnings.append("calibrated on random data: expect a large loss of accuracy on real inputs")
    if source is None and lossless:
        warnings.append(
            "without --calib-data only lossless eliminations were done; with a few hundred samples, layers can be"
            " reduced"
        )
    elif source is None:
        warnings.append("reduced from the weights alone, without calibration data: check the accuracy before use")
    if source is None and settings.format in AUTOMATIC and done.formats:
        warnings.append("without --calib-data the exponent bits of deft8 were chosen from the weights alone")
    if settings.granularity == FASTEST and settings.density not in (None, 1) and not decided:
        warnings.append("--granularity fastest was taken as auto: the model could not be run to see its sizes")
    if done.rounded > precision.TOLERANCE:
        warnings.append(
            f"this model amplifies rounding, that of its weights as much: 16-bit activations change an output by"
            f" {done.rounded:.2g}; --precision keep avoids that"
        )
    for left in done.wide:
        warnings.append(f"{left.op} '{left.name}' stays float32: {left.reason} on the calibration data")
    if random:
        warnings.append("the model draws random numbers: the result was not compared with it")
    if not ran:
        warnings.append("the result was not run: there is no data, and the model runs on none that could be made up")
    return warnings
