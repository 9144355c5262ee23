"""What every command shares: errors as one sentence with an exit code, progress on a terminal, options."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from deftonnx.errors import DeftError, UsageError
from deftonnx.sessions import first_line

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
DEBUG = "DEFTONNX_DEBUG"
"""Environment variable that lets internal errors through with their traceback."""


class DeftGroup(click.Group):
    """Turns every error into one sentence on stderr and its exit code (see `deftonnx --help`)."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a table must not fail where the locale has no box lines
        try:
            with np.errstate(all="ignore"):  # what overflows is found and said by our own checks
                return super().invoke(ctx)
        except DeftError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted; nothing more was written", INTERRUPTED)
        except MemoryError:
            fail("out of memory", 1)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly
            fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error), 1)
        except Exception as error:
            if os.environ.get(DEBUG):
                raise
            what = f"{type(error).__name__}: {first_line(error)}"
            fail(f"internal error, please report it: {what} ({DEBUG}=1 shows where)", 1)


def fail(message: str, code: int) -> NoReturn:
    """Print one sentence and leave with `code`."""
    click.echo(f"deftonnx: {message}", err=True)
    sys.exit(code)


def warn(message: str) -> None:
    """A warning on stderr, in colour on a terminal."""
    text = Text.assemble(("warning:", "bold yellow"), " ", message)
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)


def check_outputs(outputs: Mapping[str, Path | None], inputs: Sequence[Path | str]) -> None:
    """Raise UsageError where an output is an input or another output."""
    taken = {Path(path).resolve(): "an input, which is never touched" for path in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        if (what := taken.get(path.resolve())) is not None:
            raise UsageError(f"{option} '{path}' is {what}")
        taken[path.resolve()] = f"also {option}"


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that draws a bar on stderr, if that is a terminal and not `quiet`."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading the model", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def number_or_nothing(value: float | None) -> str:
    """A figure for a table cell."""
    return "" if value is None else f"{value:,}"
