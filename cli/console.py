"""What every command shares: errors as one sentence with an exit code, progress on a terminal, options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deftonnx.errors import DeftError


class DeftGroup(click.Group):
    """Turns every error into one sentence on stderr and its exit code (see `deftonnx --help`)."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DeftError as error:
            fail(str(error), error.exit_code)
        except MemoryError:
            fail("out of memory", 1)
        except BrokenPipeError:
            sys.exit(1)
        except OSError as error:
            fail(f"{error.filename or 'file'}: {error.strerror or error}", 1)


def fail(message: str, code: int) -> NoReturn:
    """Print one sentence and leave with `code`."""
    click.echo(f"deftonnx: {message}", err=True)
    sys.exit(code)


def warn(message: str) -> None:
    """A warning on stderr, in colour on a terminal."""
    Console(stderr=True, highlight=False).print(f"[bold yellow]warning:[/] {message}")


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that draws a bar on stderr, if that is a terminal and not `quiet`."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading the model", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def output_console() -> Console:
    """Standard output, wide enough for a table where it is not a terminal that says how wide it is."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=200, highlight=False)


def number_or_nothing(value: float | None) -> str:
    """A figure for a table cell."""
    return "" if value is None else f"{value:,}"
