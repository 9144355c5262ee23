"""`deftonnx bench`: models side by side."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from deftonnx.cli.console import check_outputs
from rich.console import Console
from rich.table import Table

from deftonnx import model_file
from deftonnx.errors import UsageError
from deftonnx.report.report import to_json
from deftonnx.report.table import wide_console
from deftonnx.runtime import bench as measuring
from deftonnx.runtime import cuda
from deftonnx.runtime.environment import environment


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--provider", type=click.Choice(("cuda", "cpu")), help="Default: cuda if it can be used here, else cpu.")
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, help="May be repeated. Default: 1.")
@click.option("--cuda-graph", is_flag=True, help="Replay a CUDA graph instead of launching kernel by kernel.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Turns of each model.")
@click.option("--seconds", type=float, default=0.2, show_default=True, help="Length of a turn.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads of an operator on the CPU.")
@click.option("--dim", "sizes", metavar="NAME=LENGTH", multiple=True, help="Length of a free axis. May be repeated.")
@click.option("--inputs", type=click.Path(path_type=Path), help="An .npz to run instead of random inputs.")
@click.option("--json", "output", type=click.Path(path_type=Path), metavar="FILE", help="Also write JSON; - is stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def bench(
    models: tuple[Path, ...],
    provider: str | None,
    batches: tuple[int, ...],
    sizes: tuple[str, ...],
    inputs: Path | None,
    output: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure the latency of each MODEL; the first is the baseline of the others.

    The models take turns in one process, on the same random inputs, which are on the GPU already with --provider cuda.
    A run ends when its outputs are there. 'session' is the time to make a session, 'memory' what it holds of the GPU's.
    """
    if inputs is not None and batches:
        raise UsageError("--inputs has its own batch: leave --batch out")
    if not 0 < options["seconds"] < math.inf:
        raise UsageError(f"--seconds {options['seconds']:g} is not a length of time")
    if output is not None and str(output) != "-":
        check_outputs({"--json": output}, [*models, *([] if inputs is None else [inputs])])
        model_file.check_writable(output, True)
    settings = measuring.Settings(
        provider=provider or ("cpu" if cuda.obstacle() else "cuda"),
        batches=batches or (None,),
        sizes=dict(free_axis(text) for text in sizes),
        inputs=None if inputs is None else _arrays(inputs),
        **options,
    )
    with Console(stderr=True).status("") as status:
        results = measuring.bench(models, settings, (lambda text: None) if quiet else status.update)
    content = {
        "schema": measuring.SCHEMA,
        "version": measuring.SCHEMA_VERSION,
        "environment": environment(),
        "provider": settings.provider,
        "cuda_graph": settings.cuda_graph,
        "unit": "milliseconds a run",
        "results": [result.to_dict() for result in results],
    }
    if output is not None and str(output) != "-":
        model_file.write_text(output, to_json(content) + "\n")
    if str(output) == "-":
        click.echo(to_json(content))
    else:
        wide_console().print(_table(results, settings))


def free_axis(text: str) -> tuple[str, int]:
    """The name and length that --dim gives."""
    name, _, length = text.partition("=")
    if not (name and length.isdecimal() and int(length) > 0):
        raise UsageError(f"--dim {text}: give a name and a length, as in sequence=128")
    return name, int(length)


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if not path.exists():
        raise UsageError(f"--inputs '{path}' does not exist")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"--inputs '{path}' is not an .npz of arrays") from error


def _table(results: list[measuring.Latency], settings: measuring.Settings) -> Table:
    how = settings.provider + (", CUDA graph" if settings.cuda_graph else "")
    table = Table(title=f"latency, {how}, {settings.rounds} rounds", title_justify="left")
    figures = ("batch", "p50 ms", "p95 ms", "medians of rounds", "speedup", "range", "session", "memory")
    for column in ("model", *figures, "library"):
        left = column in ("model", "library")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for x in results:
        table.add_row(
            x.model,
            str(x.batch or ""),
            f"{x.p50:.4g}",
            f"{x.p95:.4g}",
            f"{min(x.round_medians):.4g} to {max(x.round_medians):.4g}",
            f"{x.speedup:.2f}×",
            f"{x.speedup_range[0]:.2f} to {x.speedup_range[1]:.2f}",
            "" if x.session_s is None else f"{x.session_s:.2f} s",
            "" if x.gpu_bytes is None else f"{x.gpu_bytes / 2**20:.0f} MiB",
            "yes" if x.library else "",
        )
    return table
