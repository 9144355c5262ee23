"""Tables of what was measured on the CPU: accuracy after elimination, and of packed formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHOWN_FORMATS = ("half", "deft16", "deft8:auto", "fp8")
FORMATS = ROOT / "benchmarks" / "results" / "cpu" / "format_accuracy.json"
ACCURACY = ROOT / "benchmarks" / "results" / "cpu" / "accuracy.json"


def accuracy() -> str:
    """The accuracy table as Markdown, and where it is from."""
    content = json.loads(ACCURACY.read_text(encoding="utf-8"))
    lines = [
        "| model | density | granularity | top-1 | after | points lost | paper's | multiply-adds | parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_accuracy_row(row) for row in content["rows"]]
    commits = ", ".join(sorted({row["commit"] for row in content["rows"]}))
    source = (
        f"Points lost with the paired 95% interval; multiply-adds and parameters of the whole model, after absorption. "
        f"At most {content['calibration_samples_at_most']:,} unlabelled calibration samples. "
        f"From `{ACCURACY.relative_to(ROOT)}` ({content['date']}, commits {commits})."
    )
    speed = [_speed(row, content["cores"]) for row in content["rows"] if row["ours"]["latency_ms"][0]]
    return "\n".join([*lines, "", source, "", *speed])


def _accuracy_row(row: dict[str, Any]) -> str:
    ours, paper = row["ours"], row["paper"]
    cells = [
        row["model"],
        f"{row['density']:g}",
        row["granularity"],
        f"{row['original_top1']:.2f}",
        f"{ours['top1']:.2f}",
        f"{ours['loss']:.2f} ± {ours['interval_95']:.2f}",
        f"{paper['loss']:.2f} ± {paper['interval_95']:.2f}",
        f"{ours['macs']:.0%}",
        f"{ours['parameters']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def _speed(row: dict[str, Any], cores: int) -> str:
    before, after = (latency["median"] for latency in row["ours"]["latency_ms"])
    return (
        f"{row['model']} with {row['density']:g} of its channels takes {after:.2f} ms a sample instead of"
        f" {before:.2f} ms in ONNX Runtime on {cores} CPU cores ({before / after:.1f}×)."
    )


def formats() -> str:
    """The accuracy of packed formats as Markdown, and where it is from."""
    content = json.loads(FORMATS.read_text(encoding="utf-8"))
    lines = [
        "| model | format | top-1 | packed | points lost | output error | weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in content["rows"] if row["format"] in SHOWN_FORMATS):
        before, after = row["weight_bytes"]
        cells = [
            row["model"],
            f"`{row['format']}`",
            f"{row['original_top1']:.2f}",
            f"{row['top1']:.2f}",
            f"{row['loss']:.2f} ± {row['interval_95']:.2f}",
            f"{row['rel_l2']:.1e}",
            f"{after / before:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    commits = ", ".join(sorted({row["commit"] for row in content["rows"]}))
    source = (
        f"Nothing eliminated; convolutions stay in fp32. Output error is ‖Δ‖/‖y‖ of the model's outputs, weights are"
        f" the bytes of all of them. From `{FORMATS.relative_to(ROOT)}` ({content['date']}, commits {commits})."
    )
    return "\n".join([*lines, "", source])


TABLES = {"accuracy": accuracy, "formats": formats}
