"""What the before/after table says."""

import pytest

from deftonnx.evaluation import Score
from deftonnx.report import summary
from deftonnx.report.report import Report, Size


def report(**changes: object) -> Report:
    before = Size(bytes=3 << 20, parameters=2_000_000, macs=5_000_000_000, latency_ms=[2.0, 1.9, 2.2])
    after = Size(bytes=1 << 10, parameters=999, macs=2_500, latency_ms=[1.0, 0.9, 1.1])
    return Report("m.onnx", {}, before, after, [], [], [], **changes)  # type: ignore[arg-type]


def rows(shown: Report) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in summary.rows(shown)}


def test_units() -> None:
    table = rows(report())
    assert table["file size"] == ("3.00 MiB", "1.0 KiB", "0%")
    assert table["parameters"] == ("2.00 M", "999", "0%")
    assert table["multiply-adds"] == ("5.00 G", "2.50 k", "0%")


@pytest.mark.parametrize(
    ("after", "words"),
    [([1.0], "2.00× faster"), ([4.0], "2.00× slower"), ([2.0], "about the same"), ([2.08], "about the same")],
)
def test_latency_in_words(after: list[float], words: str) -> None:
    shown = report()
    shown.after.latency_ms = after
    assert rows(shown)["latency, CPU, one sample"][2] == words


@pytest.mark.parametrize(
    ("loss", "change"), [(0.0, "+0.00 ± 0.10"), (-0.0, "+0.00 ± 0.10"), (1.25, "-1.25 ± 0.10"), (-0.5, "+0.50 ± 0.10")]
)
def test_change_of_accuracy(loss: float, change: str) -> None:
    score = Score("top1", 500, loss, 90 - loss, 90.0, 0.1)
    row = rows(report(accuracy=score, accuracy_on="evaluation data"))["top1 on 500 samples (evaluation data)"]
    assert row == ("90.00%", f"{90 - loss:.2f}%", change)


def test_distance_has_no_change_of_its_own() -> None:
    score = Score("rel-l2", 500, 0.125)
    assert rows(report(accuracy=score, accuracy_on="made-up inputs"))["rel-l2 on 500 samples (made-up inputs)"] == (
        "0",
        "0.125",
        "",
    )


def test_no_latency_no_row() -> None:
    shown = report()
    shown.before.latency_ms = []
    assert "latency, CPU, one sample" not in rows(shown)
