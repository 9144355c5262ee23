"""The options that say which layers are reduced, shared by `optimize` and `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from deftonnx.settings import TARGETS

Command = Callable[..., Any]


def selection_options(command: Command) -> Command:
    """Add them to a command."""
    for option in reversed(
        (
            click.option(
                "--density",
                type=float,
                help="Fraction of K every layer keeps, above 0 and at most 1. Default with data to calibrate on: 0.75.",
            ),
            click.option(
                "--granularity",
                default="auto",
                show_default=True,
                metavar="auto|fastest|channel[:P]|block[:B]|vector|element|head[:D]",
                help="The unit of elimination. auto: channel for a Conv (blocks with --target cuda), else element;"
                " fastest (--target cuda; not with --alpha, --portable or --decide-by nothing): whatever takes the"
                " least time, at the cost of accuracy.",
            ),
            click.option(
                "--target",
                type=click.Choice(TARGETS),
                default="any",
                show_default=True,
                help="Where it will run. any: only what is faster everywhere.",
            ),
            click.option(
                "--nodes-to-exclude",
                multiple=True,
                metavar="REGEX",
                help="Neither reduce nor pack the layers of these names. May be repeated.",
            ),
            click.option(
                "--op-types-to-exclude",
                multiple=True,
                metavar="TYPE",
                help="Neither reduce nor pack layers of this operator. May be repeated.",
            ),
            click.option(
                "--keep-first/--no-keep-first", default=True, help="Eliminate nothing in first layers (default)."
            ),
            click.option(
                "--keep-last/--no-keep-last", default=True, help="Eliminate nothing in last layers (default)."
            ),
            click.option("--portable", is_flag=True, help="Standard ONNX operators only, no ai.deftonnx nodes."),
        )
    ):
        command = option(command)
    return command
