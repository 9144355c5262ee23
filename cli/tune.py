"""`deftonnx tune`: measures the kernels on this machine's GPU."""

from __future__ import annotations

import math
from pathlib import Path

import click
from rich.console import Console

from deftonnx import model_file
from deftonnx.errors import UsageError
from deftonnx.runtime import cuda, get_library_path
from deftonnx.runtime import tune as tuning
from deftonnx.runtime.environment import environment
from deftonnx.runtime.manifest import read_manifest
from deftonnx.runtime.tuning_table import VARIABLE, table_path, write_table


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Default: where the library looks for it.")
@click.option("--quick", is_flag=True, help="Fewer shapes: seconds instead of minutes.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def tune(output: Path | None, quick: bool, quiet: bool) -> None:
    """Measure the operator library's kernels on this machine's GPU and write a table that it chooses them by.

    The library reads the table when a session is made: the file that the environment variable DEFTONNX_TUNING names,
    or else ~/.cache/deftonnx/sm90.json for compute capability 9.0, and so on.
    """
    if output is not None:
        model_file.check_writable(output, True)
    library = get_library_path()
    with Console(stderr=True).status("") as status:
        shapes = tuning.tune(library, quick, (lambda text: None) if quiet else status.update)
    device = cuda.devices()[0]
    path = output or table_path(device.capability)
    if path is None:
        raise UsageError(f"{VARIABLE} is empty, so that no table is used: give --output")
    write_table(path, device, read_manifest(library), tuning.points(shapes), environment())
    better = [shape.gain for shape in shapes if shape.gain > 1]
    gain = math.exp(math.fsum(math.log(shape.gain) for shape in shapes) / len(shapes))
    click.echo(f"{path}: {len(shapes)} shapes; another kernel is faster at {len(better)}, by {gain - 1:.1%} over all")
