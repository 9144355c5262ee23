"""Compare a model with its original on evaluation data: the gate of a CI job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deftonnx import evaluation, model_file
from deftonnx.calibration import readers
from deftonnx.errors import UsageError
from deftonnx.rewrite.normalise import import_model

SCHEMA = "deftonnx-check"
SCHEMA_VERSION = 1
BATCH = 64


@dataclass
class CheckResult:
    """`score.loss` against `max_loss` if one was named, and outputs within rtol and atol if they were."""

    score: evaluation.Score
    max_loss: float | None
    worst: float
    within_tolerance: bool | None

    @property
    def passed(self) -> bool:
        """True where every limit that was named holds."""
        return (self.max_loss is None or self.score.loss <= self.max_loss) and self.within_tolerance is not False


def check(
    model: str | Path | onnx.ModelProto,
    reference: str | Path | onnx.ModelProto,
    eval_data: Any,
    *,
    metric: str | None = None,
    max_loss: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> CheckResult:
    """Run both models on `eval_data` and score `model` against `reference`.

    `rtol` and `atol`, if either is given, bound every output as numpy.allclose does (the other being 0).
    """
    ours, theirs = (m if isinstance(m, onnx.ModelProto) else model_file.load(m) for m in (model, reference))
    evaluation.check_metric(metric)
    for option, value in (("--max-loss", max_loss), ("--rtol", rtol), ("--atol", atol)):
        if value is not None and (not np.isfinite(value) or (value < 0 and option != "--max-loss")):
            raise UsageError(f"{option} {value:g} is not a limit")
    candidate = evaluation.session(ours, _quoted(model, "the model"))
    original = evaluation.session(theirs, _quoted(reference, "the reference"))
    known = {t.name for t in original.get_inputs()}
    for t in candidate.get_inputs():
        if t.name not in known:
            raise UsageError(f"{_quoted(model, 'the model')} has an input '{t.name}', which the reference has not")
    inputs = import_model(theirs).inputs
    dataset = readers.read(eval_data, inputs, "the evaluation data")
    feeds = readers.batches(dataset, inputs, None, 0, BATCH)
    taken = {t.name for t in candidate.get_inputs()}
    got = evaluation.run(candidate, [{n: a for n, a in feed.items() if n in taken} for feed in feeds])
    want = evaluation.run(original, feeds)
    evaluation.check_shapes(got, want, want)
    labels = dataset.labels_of(feeds)
    score = evaluation.score(metric or ("top1" if labels is not None else "rel-l2"), got, want, labels)
    floats = [n for n, a in want.items() if a.dtype.kind == "f" and a.size]
    worst = max((float(np.abs(got[n].astype(np.float64) - want[n]).max()) for n in floats), default=0.0)
    within = None
    if rtol is not None or atol is not None:
        within = all(_close(got[n], want[n], rtol or 0.0, atol or 0.0) for n in want)
    return CheckResult(score, max_loss, worst, within)


def _quoted(model: str | Path | onnx.ModelProto, name: str) -> str:
    return name if isinstance(model, onnx.ModelProto) else f"'{model}'"


def _close(ours: evaluation.Array, theirs: evaluation.Array, rtol: float, atol: float) -> bool:
    """Numbers within the tolerances, anything else (text, lists of maps) equal."""
    if theirs.dtype.kind in "fiub":
        return bool(np.allclose(ours, theirs, rtol=rtol, atol=atol))
    return bool(np.array_equal(ours, theirs))
