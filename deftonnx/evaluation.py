"""Running a model over data and scoring it: top-1, distances to the original's outputs, or the user's own function."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

from deftonnx.allocation import free_cycles
from deftonnx.calibration.readers import Feed, users_code
from deftonnx.errors import UnsupportedError, UsageError
from deftonnx.model import Model, apart
from deftonnx.sessions import Passing, first_line, lasting, ort_value

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]


@dataclass
class Score:
    """One comparison of a model with its original on the same samples.

    `value` and `reference` are each model's own score (None where the metric only measures a distance), `loss` is
    what was given up: points for top1, the distance itself otherwise. `interval` is half the 95% interval of the
    loss, paired by sample.
    """

    metric: str
    samples: int
    loss: float
    value: float | None = None
    reference: float | None = None
    interval: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


BFLOAT16 = "tensor(bfloat16)"
NARROW = {"tensor(float16)": np.float16, BFLOAT16: ml_dtypes.bfloat16}
"""Input types that data in float32 are cast to."""
HEAVY = 1 << 24
"""Bytes of weights from which on it is worth while to look for others that can be freed."""


def session(
    model: onnx.ModelProto | Model, name: str = "the model", *, runs_often: bool = True, observing: bool = False
) -> ort.InferenceSession:
    """A CPU session of `model`, or a sentence that says why there is none. `observing`: see sessions.Passing."""
    parts = apart(model)
    if sum(array.nbytes for array in parts.weights.values()) > HEAVY:
        free_cycles()
    if not runs_often:
        with contextlib.suppress(Exception):  # a kernel that needs constant weights
            return Passing(parts, observing=observing)
    try:
        return lasting(parts)
    except Exception as error:
        raise UnsupportedError(f"ONNX Runtime cannot load {name}: {first_line(error)}") from error


def run(model: ort.InferenceSession, feeds: list[Feed]) -> Outputs:
    """All outputs over all feeds, joined along the first axis."""
    names = [output.name for output in model.get_outputs()]
    parts: list[list[Array]] = []
    for feed in feeds:
        try:
            parts.append(runner(model, feed)())
        except Exception as error:
            raise UnsupportedError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error
    return {name: _join([part[i] for part in parts]) for i, name in enumerate(names)}


def outputs(model: onnx.ModelProto | Model | ort.InferenceSession, feeds: list[Feed]) -> Outputs:
    """What `model` computes on `feeds`, which are few; nothing without any."""
    if not feeds:
        return {}
    return run(model if isinstance(model, ort.InferenceSession) else session(model, runs_often=False), feeds)


def runner(model: ort.InferenceSession, feed: Feed) -> Callable[[], list[Array]]:
    """A function that runs `model` on `feed`, whose floats are cast to the types of the model's inputs.

    Outputs in bfloat16, which NumPy has not, come as float32.
    """
    types = {t.name: t.type for t in model.get_inputs()}
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, as it would in the model
        feed = {n: value.astype(NARROW[types[n]]) if types[n] in NARROW else value for n, value in feed.items()}
    if BFLOAT16 not in {*types.values(), *(t.type for t in model.get_outputs())}:
        return lambda: model.run(None, feed)
    names = [output.name for output in model.get_outputs()]
    values = {name: ort_value(value) for name, value in feed.items()}
    return lambda: [_to_array(value) for value in model.run_with_ort_values(names, values)]


def _to_array(value: ort.OrtValue) -> Array:
    if value.element_type() != onnx.TensorProto.BFLOAT16:
        return value.numpy()
    array = np.empty(value.shape(), NARROW[BFLOAT16])
    if array.size:
        ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array.astype(np.float32)


def _join(parts: list[Array]) -> Array:
    arrays = [np.atleast_1d(np.asarray(part)) for part in parts]
    if len({a.shape[1:] for a in arrays}) > 1:
        arrays = [a.reshape(-1) for a in arrays]
    return np.concatenate(arrays)


def check_metric(metric: str | None) -> None:
    """Refuse a metric that does not exist, before any work is done for it."""
    if metric is not None and metric not in METRICS:
        _load_function(metric)


def score(metric: str, outputs: Outputs, reference: Outputs, labels: Array | None) -> Score:
    """`metric` of `outputs` against the original's `reference` outputs. Only what deftonnx compares itself has to have
    the same shapes: how many values there are may depend on the data, and so on rounding."""
    if metric in METRICS:
        check_shapes(outputs, reference, _compared(reference))
        return METRICS[metric](outputs, reference, labels)
    function = _load_function(metric)
    samples = len(next(iter(outputs.values())))
    with users_code(f"metric '{metric}'"):
        value, original = float(function(outputs, labels)), float(function(reference, labels))
    return Score(metric, samples, original - value, value, original)


def check_shapes(outputs: Outputs, reference: Outputs, names: Iterable[str]) -> None:
    """Refuse `outputs` of other shapes than `reference` has under those `names`."""
    for name in names:
        if name not in outputs:
            raise UsageError(f"the model has no output '{name}', which the reference has")
        if outputs[name].shape != reference[name].shape:
            raise UsageError(
                f"output '{name}' has shape {outputs[name].shape}, the reference's {reference[name].shape}"
            )


def _load_function(metric: str) -> Callable[[Outputs, Array | None], float]:
    """`module:function` taking (outputs by name, labels or None) and giving a score, higher is better."""
    module, _, name = metric.partition(":")
    if not module or not name:
        raise UsageError(f"metric '{metric}' is not one of {', '.join(METRICS)} or module:function")
    with users_code(f"metric '{metric}'", Path.cwd()):
        function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise UsageError(f"metric '{metric}' is not a function")
    return function


def _first(outputs: Outputs) -> Array:
    return next(iter(outputs.values()))


def _top1(outputs: Outputs, reference: Outputs, labels: Array | None) -> Score:
    """Points of top-1 lost; without labels, of agreement with the original's answer."""
    ours, theirs = _answers(_first(outputs)), _answers(_first(reference))
    truth = theirs if labels is None else labels
    if len(truth) != len(ours):
        raise UsageError(f"top1 needs one label a sample, but there are {len(truth)} for {len(ours)} outputs")
    lost = (theirs == truth).astype(float) - (ours == truth)
    interval = 196 * float(lost.std()) / np.sqrt(len(lost))
    return Score(
        "top1",
        len(ours),
        100 * float(lost.mean()),
        100 * float((ours == truth).mean()),
        100 * float((theirs == truth).mean()),
        float(interval),
    )


def _answers(output: Array) -> Array:
    """The class of each sample: the largest of its scores, or the number itself where the model gives one."""
    if output.ndim == 1 and output.dtype.kind in "iu":
        return output
    if output.ndim < 2 or output.dtype.kind not in "fiu" or 0 in output.shape[1:]:
        raise UsageError("top1 needs a first output of (samples, classes): name another --metric")
    return np.argmax(output.reshape(len(output), -1), axis=1)


def _compared(reference: Outputs) -> list[str]:
    """The outputs that distances are of: all in floating point, or where there are none, all numbers."""
    names = [n for n, a in reference.items() if a.dtype.kind == "f"]
    return names or [n for n, a in reference.items() if a.dtype.kind in "biu"]


def _flat(outputs: Outputs, reference: Outputs) -> tuple[Array, Array]:
    """Both sides' compared outputs as (samples, values) float64."""
    names = _compared(reference)
    if not names:
        raise UsageError("the model has no numeric output to compare: name a --metric module:function")
    sides = []
    for side in (outputs, reference):
        samples = len(side[names[0]])
        parts = [side[n].astype(np.float64).reshape(samples, -1) for n in names if len(side[n]) == samples]
        sides.append(np.concatenate(parts, axis=1))
    return without_agreed(sides[0], sides[1])


def without_agreed(ours: Array, theirs: Array) -> tuple[Array, Array]:
    """Both arrays with zero where they agree on an infinity or a NaN: a masked logit is no difference."""
    agreed = ~np.isfinite(theirs) & ((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
    return np.where(agreed, 0, ours), np.where(agreed, 0, theirs)


def _relative_l2(outputs: Outputs, reference: Outputs, labels: Array | None) -> Score:
    """‖y − y*‖/‖y*‖ over all outputs."""
    y, target = _flat(outputs, reference)
    return Score("rel-l2", len(y), float(np.linalg.norm(y - target)) / max(float(np.linalg.norm(target)), 1e-30))


def _cosine(outputs: Outputs, reference: Outputs, labels: Array | None) -> Score:
    """One minus the mean cosine similarity of each sample's outputs."""
    y, target = _flat(outputs, reference)
    norms = np.linalg.norm(y, axis=1) * np.linalg.norm(target, axis=1)
    cosine = np.divide((y * target).sum(1), norms, out=np.ones(len(y)), where=norms > 0)
    return Score("cosine", len(y), 1 - float(cosine.mean()))


def _kl(outputs: Outputs, reference: Outputs, labels: Array | None) -> Score:
    """Mean KL divergence in nats of the first output's softmax from the original's."""
    p, q = (_log_softmax(_first(o).astype(np.float64)) for o in (reference, outputs))
    return Score("kl", len(p), float((np.exp(p) * (p - q)).sum(-1).mean()))


def _log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


LEAST_ROUNDS = 3
METRICS: dict[str, Callable[[Outputs, Outputs, Array | None], Score]] = {
    "top1": _top1,
    "rel-l2": _relative_l2,
    "cosine": _cosine,
    "kl": _kl,
}


def latencies(
    models: list[ort.InferenceSession], feed: Feed, rounds: int = 9, budget: float = 2.0
) -> list[list[float]]:
    """Milliseconds a run of each session, one figure a round, the sessions taking turns.

    Each figure is the mean over enough runs to fill its share of `budget` seconds, at least one. There are fewer
    rounds, at least LEAST_ROUNDS, where they would take longer.
    """
    results: list[list[float]] = [[] for _ in models]
    repeats, seconds = [], 0.0
    runs = [runner(model, feed) for model in models]
    for run_once in runs:
        run_once()
        start = time.perf_counter()
        run_once()
        once = time.perf_counter() - start
        seconds += once
        repeats.append(max(1, min(1000, int(budget / rounds / len(models) / max(once, 1e-6)))))
    for _ in range(max(LEAST_ROUNDS, min(rounds, int(budget / max(seconds, 1e-6))))):
        for run_once, repeat, result in zip(runs, repeats, results, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                run_once()
            result.append((time.perf_counter() - start) / repeat * 1e3)
    return results
