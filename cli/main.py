"""`deftonnx`: the group of all commands."""

from __future__ import annotations

import click
from deftonnx.cli.bench import bench
from deftonnx.cli.check import check
from deftonnx.cli.console import DeftGroup
from deftonnx.cli.doctor import doctor
from deftonnx.cli.inspect import inspect
from deftonnx.cli.lib_path import lib_path
from deftonnx.cli.optimize import optimize
from deftonnx.cli.tune import tune

from deftonnx.version import __version__


@click.group(cls=DeftGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="deftonnx")
def main() -> None:
    """Make exported ONNX models smaller and faster, to an accuracy you name.

    \b
    Exit codes: 0 ok, 2 unusable option or input file, 3 accuracy budget missed,
    4 nothing improved (only with --fail-if-unchanged), 5 unsupported model or environment,
    130 interrupted, 1 anything else.
    """


main.add_command(optimize)
main.add_command(inspect)
main.add_command(check)
main.add_command(lib_path)
main.add_command(bench)
main.add_command(doctor)
main.add_command(tune)
