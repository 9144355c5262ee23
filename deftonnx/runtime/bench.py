"""How long models take, side by side: candidates take turns in one process, and every run is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime

from deftonnx import model_file
from deftonnx.errors import UnsupportedError, UsageError
from deftonnx.runtime import cuda
from deftonnx.runtime.failure import reason
from deftonnx.runtime.footprint import Footprint, footprint, repeated
from deftonnx.runtime.made_up_inputs import Array, made_up_inputs
from deftonnx.runtime.session import register_if_built

SCHEMA = "deftonnx-bench"
SCHEMA_VERSION = 1
DOMAIN = "ai.deftonnx"
WARM_UP = 5
MOST_RUNS = 1000
"""Runs of a candidate in one round, at most."""

Run = Callable[[], None]


@dataclass(frozen=True)
class Settings:
    """What is measured. `provider`: cuda or cpu; `batches`: lengths of the first axis, None for the model's own."""

    provider: str
    batches: tuple[int | None, ...] = (None,)
    cuda_graph: bool = False
    rounds: int = 7
    seconds: float = 0.2  # of one candidate in one round
    threads: int = 0  # intra-op; 0 is ONNX Runtime's choice
    sizes: Mapping[str, int] = field(default_factory=dict)  # of free axes, by name
    inputs: Mapping[str, Array] | None = None
    seed: int = 0
    footprint: bool = True  # whether to measure it


@dataclass(frozen=True)
class Latency:
    """One candidate at one batch size, in milliseconds a run. `speedup` is the baseline's p50 over this one's, and its
    range over the rounds."""

    model: str
    batch: int | None
    p50: float
    p95: float
    round_medians: list[float]
    runs: int
    speedup: float
    speedup_range: tuple[float, float]
    library: bool  # whether the operator library was registered
    session_s: float | None  # to make the session, see footprint
    gpu_bytes: int | None  # device memory that it holds

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bench(models: Sequence[str | Path], settings: Settings, progress: Callable[[str], None]) -> list[Latency]:
    """Measure every model at every batch size; the first model is the baseline.

    Raises UsageError for a model or option that cannot be used, UnsupportedError where the provider or a model cannot
    be run here.
    """
    if settings.provider == "cuda" and (obstacle := cuda.obstacle()):
        raise UnsupportedError(f"--provider cuda: {obstacle}")
    if settings.cuda_graph and settings.provider != "cuda":
        raise UsageError("--cuda-graph goes with --provider cuda")
    protos = [model_file.read(path) for path in models]
    results = []
    for batch in settings.batches:
        candidates = []
        for path, proto in zip(models, protos, strict=True):
            progress(f"loading {path}")
            candidates.append(_candidate(str(path), proto, batch, settings))
        candidates = _with_more_sessions(candidates)
        results += _measure(candidates, batch, settings, progress)
    return results


def uses_library(model: onnx.ModelProto) -> bool:
    """Whether `model` has operators that the library has kernels for."""
    return any(node.domain == DOMAIN for node in model.graph.node)


@dataclass(frozen=True)
class _Candidate:
    model: str
    run: Run
    library: bool
    create: Callable[[], onnxruntime.InferenceSession]
    footprint: Footprint | None


def _candidate(path: str, model: onnx.ModelProto, batch: int | None, settings: Settings) -> _Candidate:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is told in the error
    options.intra_op_num_threads = settings.threads
    # the threads of a model that is not having its turn must not spin beside the one that is
    options.add_session_config_entry("session.force_spinning_stop", "1")
    on_gpu = settings.provider == "cuda"
    library = on_gpu and uses_library(model) and register_if_built(options)
    providers: list[Any] = ["CPUExecutionProvider"]
    if on_gpu:
        choice = {"enable_cuda_graph": str(int(settings.cuda_graph)), "arena_extend_strategy": "kSameAsRequested"}
        providers.insert(0, (cuda.PROVIDER, choice))
    feed = _feed(path, model, batch, settings)

    def create() -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)

    def bound(session: onnxruntime.InferenceSession) -> Run:
        run = _bound_run(session, feed, settings.cuda_graph) if on_gpu else _plain_run(session, feed)
        for _ in range(WARM_UP):
            run()
        return run

    try:
        needs = footprint(create, lambda session: bound(session)())[1] if settings.footprint else None
        run = bound(create())
    except Exception as error:
        graph = " with a CUDA graph" if settings.cuda_graph else ""
        raise UnsupportedError(f"ONNX Runtime cannot run '{path}'{graph}: {reason(error)}") from error
    return _Candidate(path, run, library, create, needs)


def _with_more_sessions(candidates: list[_Candidate]) -> list[_Candidate]:
    """The candidates, their footprints those of several sessions each."""
    once = [c.footprint for c in candidates if c.footprint is not None]
    if len(once) < len(candidates):
        return candidates
    again = repeated([c.create for c in candidates], once)
    return [replace(c, footprint=needs) for c, needs in zip(candidates, again, strict=True)]


def _feed(path: str, model: onnx.ModelProto, batch: int | None, settings: Settings) -> Mapping[str, Array]:
    if settings.inputs is None:
        return made_up_inputs(model, path, batch, settings.sizes, settings.seed)
    weights = {t.name for t in model.graph.initializer}
    wanted = [value.name for value in model.graph.input if value.name not in weights]
    if missing := [name for name in wanted if name not in settings.inputs]:
        raise UsageError(f"--inputs has no array for input '{missing[0]}' of '{path}'")
    return {name: settings.inputs[name] for name in wanted}


def _plain_run(session: onnxruntime.InferenceSession, feed: Mapping[str, Array]) -> Run:
    values = {name: _host_value(array) for name, array in feed.items()}
    outputs = [output.name for output in session.get_outputs()]
    return lambda: session.run_with_ort_values(outputs, values)


def _bound_run(session: onnxruntime.InferenceSession, feed: Mapping[str, Array], graph: bool) -> Run:
    """A run with its inputs and outputs in the GPU's memory, at fixed addresses as a CUDA graph needs."""
    first, binding = session.io_binding(), session.io_binding()
    values = [(name, device_value(array)) for name, array in feed.items()]
    for name, value in values:
        first.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        first.bind_output(name, "cuda")
    uncaptured = onnxruntime.RunOptions()
    if graph:
        uncaptured.add_run_config_entry("gpu_graph_id", "-1")
    session.run_with_iobinding(first, uncaptured)  # tells the shapes of the outputs
    outputs = first.get_outputs()
    for name, value in zip(names, outputs, strict=True):
        binding.bind_ortvalue_output(name, value)

    def run(keep: object = (values, outputs)) -> None:
        session.run_with_iobinding(binding)

    return run


def _host_value(array: Array) -> onnxruntime.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, onnx.TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def device_value(array: Array) -> onnxruntime.OrtValue:
    """A copy of `array` in the GPU's memory."""
    if array.dtype != ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
    kind = onnx.TensorProto.BFLOAT16
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, kind, "cuda", 0)
    value.update_inplace(array.view(np.uint16))
    return value


def _measure(
    candidates: list[_Candidate], batch: int | None, settings: Settings, progress: Callable[[str], None]
) -> list[Latency]:
    runs = [max(1, min(MOST_RUNS, int(settings.seconds / max(_once(c.run), 1e-6)))) for c in candidates]
    samples: list[list[list[float]]] = [[] for _ in candidates]
    for round_number in range(settings.rounds):
        progress(f"round {round_number + 1} of {settings.rounds}" + (f", batch {batch}" if batch else ""))
        turn = range(len(candidates))
        for i in turn if round_number % 2 == 0 else reversed(turn):  # nobody is always first
            samples[i].append([_once(candidates[i].run) * 1e3 for _ in range(runs[i])])
    medians = [[statistics.median(r) for r in rounds] for rounds in samples]
    overall = [np.percentile([t for r in rounds for t in r], [50, 95]) for rounds in samples]
    results = []
    for c, rounds, own, (p50, p95) in zip(candidates, samples, medians, overall, strict=True):
        ratios = [base / mine for base, mine in zip(medians[0], own, strict=True)]
        results.append(
            Latency(
                model=c.model,
                batch=batch,
                p50=float(p50),
                p95=float(p95),
                round_medians=own,
                runs=sum(len(r) for r in rounds),
                speedup=float(overall[0][0] / p50),
                speedup_range=(min(ratios), max(ratios)),
                library=c.library,
                session_s=None if c.footprint is None else c.footprint.session_s,
                gpu_bytes=None if c.footprint is None else c.footprint.gpu_bytes,
            )
        )
    return results


def _once(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
