"""`deftonnx check`: the gate of a CI job."""

from __future__ import annotations

from pathlib import Path

import click

from deftonnx.check import SCHEMA, SCHEMA_VERSION
from deftonnx.check import check as run
from deftonnx.errors import AccuracyError
from deftonnx.report.report import to_json


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--reference", required=True, type=click.Path(path_type=Path), help="The original model.")
@click.option("--eval-data", required=True, metavar="PATH", help="As for optimize; may hold 'labels'.")
@click.option(
    "--metric", metavar="NAME", help="top1, rel-l2, cosine, kl or module:function. Default: top1 with labels."
)
@click.option("--max-loss", type=float, help="Largest loss allowed, in the metric's unit (points for top1).")
@click.option("--rtol", type=float, help="Relative tolerance on every output.")
@click.option("--atol", type=float, help="Absolute tolerance on every output.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def check(
    model: Path,
    reference: Path,
    eval_data: str,
    metric: str | None,
    max_loss: float | None,
    rtol: float | None,
    atol: float | None,
    as_json: bool,
) -> None:
    """Compare MODEL with its original; exit with code 3 if a limit is missed."""
    result = run(model, reference, eval_data, metric=metric, max_loss=max_loss, rtol=rtol, atol=atol)
    score = result.score
    if as_json:
        content = {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "model": str(model),
            "reference": str(reference),
            "score": score.to_dict(),
            "max_loss": max_loss,
            "largest_difference": result.worst,
            "within_tolerance": result.within_tolerance,
            "passed": result.passed,
        }
        click.echo(to_json(content))
    else:
        spread = "" if score.interval is None else f" ± {score.interval:.2f}"
        own = "" if score.value is None else f" ({score.reference:.2f} → {score.value:.2f})"
        click.echo(f"{score.metric} loss {score.loss:.4g}{spread}{own} on {score.samples} samples")
        click.echo(f"largest difference of an output {result.worst:.3g}")
    if not result.passed:
        if max_loss is not None and not score.loss <= max_loss:
            raise AccuracyError(f"{score.metric} loss {score.loss:.4g} of '{model}' is above --max-loss {max_loss:g}")
        raise AccuracyError(f"outputs of '{model}' differ from the reference by up to {result.worst:.3g}")
