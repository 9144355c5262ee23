"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from deftonnx.layers import Refusal
from deftonnx.report import summary
from deftonnx.report.report import Report

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>DeftONNX: {model}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0 2rem; width: 100%; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; vertical-align: top; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.bar {{ background: #3572b0; height: .6rem; display: inline-block; }}
.warning {{ background: #fff3cd; padding: .5rem .8rem; border-left: 4px solid #d39e00; }}
</style></head><body>
<h1>{model}</h1>
<p>Written to {output} by DeftONNX in {seconds:.1f} s.</p>
{warnings}
<table><tr><th></th><th class="number">before</th><th class="number">after</th><th class="number">change</th></tr>
{summary}</table>
<h2>Layers</h2>
<table><tr>{columns}<th>multiply-adds left</th></tr>
{layers}</table>
<h2>Left alone</h2>
<table><tr><th>layer</th><th>op</th><th>why</th></tr>
{left_alone}</table>
{left_unpacked}
</body></html>
"""
_LEFT_UNPACKED = """<h2>Left unpacked</h2>
<table><tr><th>layer</th><th>op</th><th>why</th></tr>
{rows}</table>
"""


def page(report: Report) -> str:
    """The report as HTML; all text from the model is escaped."""
    columns = summary.LAYER_COLUMNS
    numbers = {i for i, number in enumerate(columns.values()) if number}
    return _PAGE.format(
        model=escape(report.model),
        output=escape(report.output or "nowhere"),
        seconds=report.seconds,
        warnings="".join(f'<p class="warning">{escape(w)}</p>' for w in report.warnings),
        summary="\n".join(_row(row, numbers={1, 2, 3}) for row in summary.rows(report)),
        columns="".join(f"<th{' class=number' * number}>{escape(c)}</th>" for c, number in columns.items()),
        layers="\n".join(
            _row(summary.layer_cells(row), numbers, _bar(row.macs_after / max(row.macs_before, 1)))
            for row in report.layers
        ),
        left_alone=_refusals(report.left_alone),
        left_unpacked=_LEFT_UNPACKED.format(rows=_refusals(report.left_unpacked)) if report.left_unpacked else "",
    )


def _refusals(refusals: Iterable[Refusal]) -> str:
    return "\n".join(_row((r.name, r.op, r.reason)) for r in refusals)


def _row(cells: Iterable[str], numbers: frozenset[int] | set[int] = frozenset(), last: str = "") -> str:
    parts = [f"<td{' class=number' * (i in numbers)}>{escape(c)}</td>" for i, c in enumerate(cells)]
    return f"<tr>{''.join(parts)}{last}</tr>"


def _bar(share: float) -> str:
    return f'<td><span class="bar" style="width:{8 * min(share, 1):.2f}rem"></span> {share:.0%}</td>'
