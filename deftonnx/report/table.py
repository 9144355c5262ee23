"""The report as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from deftonnx.report import summary
from deftonnx.report.report import Report


def wide_console() -> Console:
    """Standard output, wide enough for a table where it is not a terminal that says how wide it is."""
    width = None if Console().is_terminal else 200
    return Console(width=width, highlight=False, markup=False, emoji=False)  # names of nodes are text, not markup


def show(report: Report, console: Console | None = None, verbose: int = 0) -> None:
    """Print the before/after table; with `verbose` also what was done to each layer and why others were left."""
    console = console or wide_console()
    if verbose:
        _layers(report, console)
    table = Table(title=f"{report.model} → {report.output or '(not written)'}", title_justify="left")
    for column, justify in (("", "left"), ("before", "right"), ("after", "right"), ("change", "right")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in summary.rows(report):
        table.add_row(*row)
    console.print(table)
    reduced = sum(row.granularity is not None for row in report.layers)
    console.print(
        f"{reduced} layers reduced, {len(report.left_alone)} left alone, in {report.seconds:.1f} s"
        + ("" if verbose else " (-v for each)"),
        highlight=False,
    )


def _layers(report: Report, console: Console) -> None:
    table = Table(title="layers", title_justify="left")
    for column in ("layer", "op", "K", "kept", "granularity", "written as", "error", "multiply-adds"):
        table.add_column(column, justify="left" if column in ("layer", "op", "granularity", "written as") else "right")
    for row in report.layers:
        table.add_row(
            row.name,
            row.op,
            str(row.K),
            str(row.kept),
            row.granularity or "",
            row.form,
            "" if row.error is None else f"{row.error:.2%}",
            f"{row.macs_after / max(row.macs_before, 1):.0%}",
        )
    console.print(table)
    if report.left_alone:
        alone = Table("layer", "op", "why it was left alone", title="left alone", title_justify="left")
        for refusal in report.left_alone:
            alone.add_row(refusal.name, refusal.op, refusal.reason)
        console.print(alone)
