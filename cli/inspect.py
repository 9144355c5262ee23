"""`deftonnx inspect`: what is in a model and what could be reduced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from deftonnx.cli.console import number_or_nothing
from deftonnx.cli.selection_options import selection_options
from rich.table import Table

from deftonnx.inspect import SCHEMA, SCHEMA_VERSION, LayerInfo
from deftonnx.inspect import inspect as run
from deftonnx.report.report import to_json
from deftonnx.report.table import wide_console


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@selection_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def inspect(model: Path, as_json: bool, **options: Any) -> None:
    """List every linear layer of MODEL: its sizes, its share of the work, and whether it can be reduced."""
    layers = run(model, **options)
    if as_json:
        content = {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "model": str(model),
            "layers": [vars(x) for x in layers],
        }
        click.echo(to_json(content))
        return
    wide_console().print(_table(layers, str(model)))


def _table(layers: list[LayerInfo], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("layer", "op", "M", "K", "N", "groups", "parameters", "format", "bytes", "share", "eligible"):
        left = column in ("layer", "op", "M", "format", "eligible")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for x in layers:
        table.add_row(
            x.name,
            x.op,
            x.m_rule or "",
            *(number_or_nothing(v) for v in (x.K, x.N, x.groups, x.parameters)),
            x.format or "",
            number_or_nothing(x.bytes),
            "" if x.share is None else f"{x.share:.1%}",
            "yes" if x.reason is None else f"no: {x.reason}",
        )
    return table
