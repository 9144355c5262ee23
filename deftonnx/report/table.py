"""The report as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from deftonnx.layers import Refusal
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
    packed = sum(row.format is not None for row in report.layers)
    counts = [f"{reduced} layer{'' if reduced == 1 else 's'} reduced", f"{len(report.left_alone)} left alone"]
    if packed or report.left_unpacked:
        counts += [f"{packed} packed", f"{len(report.left_unpacked)} left unpacked"]
    console.print(
        f"{', '.join(counts)}, in {report.seconds:.1f} s" + ("" if verbose else " (-v for each)"),
        highlight=False,
    )


def _layers(report: Report, console: Console) -> None:
    table = Table(title="layers", title_justify="left")
    for column, is_number in (*summary.LAYER_COLUMNS.items(), ("multiply-adds", True)):
        table.add_column(column, justify="right" if is_number else "left")
    for row in report.layers:
        table.add_row(*summary.layer_cells(row), f"{row.macs_after / max(row.macs_before, 1):.0%}")
    console.print(table)
    _refusals(report.left_alone, "left alone", console)
    _refusals(report.left_unpacked, "left unpacked", console)
    _refusals(report.left_in_float32, "left in float32", console)
    _refusals(report.left_apart, "left a node of its own", console)


def _refusals(refusals: list[Refusal], title: str, console: Console) -> None:
    if not refusals:
        return
    table = Table("layer", "op", f"why it was {title}", title=title, title_justify="left")
    for refusal in refusals:
        table.add_row(refusal.name, refusal.op, refusal.reason)
    console.print(table)
