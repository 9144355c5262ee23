"""`deftonnx lib-path`: where the operator library is."""

from __future__ import annotations

import click

from deftonnx.runtime import get_library_path


@click.command("lib-path")
def lib_path() -> None:
    """Print the path of the operator library, for programs in any language that ONNX Runtime serves."""
    click.echo(get_library_path())
