"""Scores against their definitions."""

from pathlib import Path

import numpy as np
import pytest

from deftonnx import evaluation
from deftonnx.errors import UsageError

RNG = np.random.default_rng(0)
Y, REFERENCE = RNG.standard_normal((2, 50, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 50)


def score(metric: str, labels: np.ndarray | None = None) -> evaluation.Score:
    return evaluation.score(metric, {"y": Y}, {"y": REFERENCE}, labels)


def test_top1_is_paired() -> None:
    ours, theirs = Y.argmax(1) == LABELS, REFERENCE.argmax(1) == LABELS
    got = score("top1", LABELS)
    assert (got.value, got.reference) == (pytest.approx(100 * ours.mean()), pytest.approx(100 * theirs.mean()))
    difference = theirs.astype(float) - ours
    assert got.loss == pytest.approx(100 * difference.mean())
    assert got.interval == pytest.approx(100 * 1.96 * difference.std() / np.sqrt(50))


def test_top1_without_labels_is_agreement() -> None:
    got = score("top1")
    assert got.reference == 100
    assert got.value == pytest.approx(100 * (Y.argmax(1) == REFERENCE.argmax(1)).mean())


def test_top1_of_class_numbers() -> None:
    answers = Y.argmax(1)
    assert evaluation.score("top1", {"y": answers}, {"y": answers}, answers).value == 100


@pytest.mark.parametrize("output", [np.zeros(5, np.float32), np.array(["a", "b"])])
def test_top1_needs_scores(output: np.ndarray) -> None:
    with pytest.raises(UsageError, match="top1"):
        evaluation.score("top1", {"y": output}, {"y": output}, None)


def test_distances() -> None:
    assert score("rel-l2").loss == pytest.approx(np.linalg.norm(Y - REFERENCE) / np.linalg.norm(REFERENCE), rel=1e-5)
    cosines = [y @ r / np.linalg.norm(y) / np.linalg.norm(r) for y, r in zip(Y, REFERENCE, strict=True)]
    assert score("cosine").loss == pytest.approx(1 - np.mean(cosines), rel=1e-5)
    p, q = (np.exp(z.astype(float)) / np.exp(z.astype(float)).sum(1, keepdims=True) for z in (REFERENCE, Y))
    assert score("kl").loss == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("metric", ["rel-l2", "cosine", "kl"])
def test_a_model_is_no_distance_from_itself(metric: str) -> None:
    assert evaluation.score(metric, {"y": Y}, {"y": Y}, None).loss == pytest.approx(0, abs=1e-6)


def test_own_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text("def mean(outputs, labels):\n    return outputs['y'].mean()\n")
    monkeypatch.chdir(tmp_path)
    got = score("own_metric:mean")
    assert got.loss == pytest.approx(REFERENCE.mean() - Y.mean(), rel=1e-4)


def test_text_outputs_cannot_be_compared_by_distance() -> None:
    text = {"y": np.array(["a", "b"])}
    with pytest.raises(UsageError, match="no numeric output"):
        evaluation.score("rel-l2", text, text, None)
