"""The rows of the before/after summary, shared by the terminal table and the HTML page."""

from __future__ import annotations

import statistics

from deftonnx.report.report import LayerRow, Report, Size

Row = tuple[str, str, str, str]
LAYER_COLUMNS = {
    "layer": False,
    "op": False,
    "K": True,
    "kept": True,
    "granularity": False,
    "written as": False,
    "error": True,
    "format": False,
    "format error": True,
    "weights": True,
    "kernel": False,
    "µs before": True,
    "µs after": True,
    "timed": False,
}
"""The columns of the table of layers, and whether they hold numbers. Both errors are mean squares over the variance of
the layer's outputs: what elimination costs, and what packing adds. Times are those of a whole layer at the largest
batch size, by ONNX Runtime's own operators and as it was written."""
NOISE = 0.05


def rows(report: Report) -> list[Row]:
    """(figure, before, after, change) for size, parameters, multiply-adds, latency and accuracy."""
    before, after = report.before, report.after
    table = [
        ("file size", _bytes(before.bytes), _bytes(after.bytes), _ratio(before.bytes, after.bytes)),
        (
            "weights",
            _bytes(before.weight_bytes),
            _bytes(after.weight_bytes),
            _ratio(before.weight_bytes, after.weight_bytes),
        ),
        (
            "parameters",
            _count(before.parameters),
            _count(after.parameters),
            _ratio(before.parameters, after.parameters),
        ),
        ("multiply-adds", _count(before.macs), _count(after.macs), _ratio(before.macs, after.macs)),
    ]
    if before.latency_ms and after.latency_ms:
        old, new = statistics.median(before.latency_ms), statistics.median(after.latency_ms)
        table.append(("latency, CPU, one sample", _latency(before), _latency(after), _speed(old, new)))
    for batch, (was, now) in report.gpu_ms.items():
        table.append((f"latency, GPU, batch {batch}", f"{was:.3f} ms", f"{now:.3f} ms", _speed(was, now)))
    score = report.accuracy
    if score is not None:
        on = f"{score.metric} on {score.samples} samples ({report.accuracy_on})"
        if score.value is not None and score.reference is not None:
            spread = "" if score.interval is None else f" ± {score.interval:.2f}"
            unit = "%" if score.metric == "top1" else ""
            table.append(
                (
                    on,
                    f"{score.reference:.2f}{unit}",
                    f"{score.value:.2f}{unit}",
                    f"{0.0 - score.loss:+.2f}{spread}",
                )
            )
        else:
            table.append((on, "0", f"{score.loss:.4g}", ""))
    return table


def _ratio(before: int, after: int) -> str:
    return "" if not before else f"{after / before:.0%}"


def _speed(old: float, new: float) -> str:
    """The change of a latency in words; a few per cent are the noise of the machine."""
    if abs(old - new) <= NOISE * old:
        return "about the same"
    return f"{old / new:.2f}× faster" if new < old else f"{new / old:.2f}× slower"


def _count(value: int) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return str(value)


def layer_cells(row: LayerRow) -> tuple[str, ...]:
    """The figures of one layer, under LAYER_COLUMNS."""
    return (
        row.name,
        row.op,
        str(row.K),
        str(row.kept),
        row.granularity or "",
        row.form + (", in one node with others" if row.joined else ""),
        "" if row.error is None else f"{row.error:.2%}",
        row.format or "",
        "" if row.format_error is None else f"{row.format_error:.2g}",
        f"{_bytes(row.bytes_before)} → {_bytes(row.bytes_after)}",
        row.kernel or "",
        _microseconds(row.us_before),
        _microseconds(row.us_after),
        "" if row.timed is None or row.us_after is None else f"{row.timed}, batch {max(row.us_after)}",
    )


def _microseconds(times: dict[int, float] | None) -> str:
    return "" if times is None else f"{times[max(times)]:.1f}"


def _bytes(value: int) -> str:
    return f"{value / 2**20:.2f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"


def _latency(size: Size) -> str:
    middle = statistics.median(size.latency_ms)
    return f"{middle:.3f} ms ({min(size.latency_ms):.3f}–{max(size.latency_ms):.3f})"
