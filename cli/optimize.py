"""`deftonnx optimize`: the main job."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from deftonnx.cli.console import check_outputs, progress, warn
from deftonnx.cli.selection_options import selection_options

from deftonnx import model_file
from deftonnx.allocation import keep_freed_memory
from deftonnx.elimination.choice import CRITERIA
from deftonnx.elimination.refit import REFITS
from deftonnx.errors import UnchangedError, UsageError
from deftonnx.optimize import optimize as run
from deftonnx.presets import PRESETS
from deftonnx.report import html, table
from deftonnx.settings import DECIDERS, IO_TYPES, PRECISIONS


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL with the suffix .deft.onnx.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option(
    "--calib-data",
    metavar="PATH",
    help="Calibration data: .npz keyed by input name (samples along the first axis), .npy (one input), a directory of "
    ".npz, or script.py[:function] yielding feed dicts (function 'calibration_data' by default). 'random' for none.",
)
@click.option("--calib-samples", type=int, default=512, show_default=True, help="Samples used, picked with --seed.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="For NVIDIA GPUs. dense16: 16 bits, packed and fused, no elimination. balanced: density 0.75 as well. fast: "
    "density 0.5 and weights in 8 bits. Options given beside it go before it.",
)
@selection_options
@click.option("--alpha", type=float, help="The paper's correlation threshold, instead of --density.")
@click.option("--criterion", type=click.Choice(list(CRITERIA)), help="What decides what goes. Default: obs.")
@click.option(
    "--refit",
    type=click.Choice(list(REFITS)),
    help="What is done to the weights that stay. Default: least-squares; scale without data.",
)
@click.option(
    "--no-absorb",
    "absorb",
    flag_value=False,
    default=True,
    help="The paper's literal form: leave the Gathers.",
)
@click.option(
    "--no-unpack",
    "unpack",
    flag_value=False,
    default=True,
    help="Least GPU memory: weights in 8 bits are not kept in 16 bits as well, which is faster for more than 32 rows.",
)
@click.option(
    "--format",
    default="fp32",
    show_default=True,
    metavar="fp32|half|deft16|deft16q|deft8[:E]|deft8:auto|fp8",
    help="How weights of MatMul and Gemm are stored. deft8:E: 8 bits, E of them exponent (1 to 7); deft8:auto chooses "
    "E layer by layer; fp8: deft8:4, and activations rounded to 8 bits as the model runs, for FP8 tensor cores. All "
    "but fp32 write ai.deftonnx nodes.",
)
@click.option(
    "--io-types",
    type=click.Choice(IO_TYPES),
    default="keep",
    show_default=True,
    help="Type of the graph's float32 inputs and outputs, and of the activations that packed layers hand each other.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="keep",
    show_default=True,
    help="16-bit: float16 where values on calibration data fit it, else bfloat16, in the largest regions that have "
    "CUDA kernels. Inputs and outputs keep their types (see --io-types).",
)
@click.option(
    "--decide-by",
    type=click.Choice(DECIDERS),
    default="auto",
    show_default=True,
    help="With --target cuda, what says which rewrites pay: times measured on this GPU (kept from 2% on), a model of "
    "one (left out where slower; packing where a quarter slower), or nothing, which keeps all. auto: measurement where "
    "there is a GPU, else model.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 64),
    show_default=True,
    help="Batch size to decide for. May be repeated: the mean gain counts.",
)
@click.option("--gpu", metavar="NAME", help="The GPU whose model decides where there is none. Default: h100.")
@click.option("--eval-data", metavar="PATH", help="Data to score on, in the forms of --calib-data; may hold 'labels'.")
@click.option(
    "--metric", metavar="NAME", help="top1, rel-l2, cosine, kl or module:function. Default: top1 with labels."
)
@click.option(
    "--plan-in",
    type=click.Path(path_type=Path),
    help="Replay the decisions of an earlier run, whatever other options say of those layers.",
)
@click.option("--plan-out", type=click.Path(path_type=Path), help="Write the decisions as JSON.")
@click.option(
    "--report", "report_path", type=click.Path(path_type=Path), help="Write a report: FILE.json or FILE.html."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON and nothing else.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dry-run", is_flag=True, help="Do everything but write the model.")
@click.option("--save-as-external-data", is_flag=True, help="Keep the weights in a file beside the model.")
@click.option("--fail-if-unchanged", is_flag=True, help="Exit with code 4 if nothing was improved.")
@click.option("-v", "--verbose", count=True, help="Show every layer.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
def optimize(
    model: Path,
    output: Path | None,
    force: bool,
    calib_data: str | None,
    eval_data: str | None,
    metric: str | None,
    plan_in: Path | None,
    plan_out: Path | None,
    report_path: Path | None,
    as_json: bool,
    dry_run: bool,
    save_as_external_data: bool,
    fail_if_unchanged: bool,
    verbose: int,
    quiet: bool,
    preset: str | None,
    **settings: Any,
) -> None:
    """Make MODEL smaller and faster and write the result beside it.

    Without --calib-data nothing is eliminated unless --criterion correlation or magnitude asks for it.
    """
    output = output or model.parent / f"{model.name.removesuffix('.onnx')}.deft.onnx"
    if report_path is not None and report_path.suffix not in (".json", ".html"):
        raise UsageError(f"--report '{report_path}' is neither .json nor .html")
    inputs = [path for path in (model, calib_data, eval_data, plan_in) if path is not None]
    if output.exists():
        inputs += [model.parent / name for name in model_file.data_files(model)]
    check_outputs({"output": output, "--plan-out": plan_out, "--report": report_path}, inputs)
    if not dry_run and model.exists():
        model_file.check_writable(output, force)
    for path in (plan_out, report_path):
        if path is not None:
            model_file.check_writable(path, True)
    if calib_data is not None:
        keep_freed_memory()
    with progress(quiet) as callback:
        result = run(
            model,
            calib_data=calib_data,
            eval_data=eval_data,
            metric=metric,
            plan=plan_in,
            progress=callback,
            preset=preset,
            **(settings if preset is None else _given(settings)),
        )
    report = result.report
    with contextlib.ExitStack() as stack:  # where one output cannot be written, none is
        report.output = None if dry_run else str(output)
        texts = [] if plan_out is None else [(plan_out, result.plan.to_json(indent=1) + "\n")]
        if report_path is not None:
            page = html.page(report) if report_path.suffix == ".html" else report.to_json() + "\n"
            texts.append((report_path, page))
        moves = [stack.enter_context(model_file.staged_text(*text)) for text in texts]
        if not dry_run:
            result.save(output, external_data=save_as_external_data)
        for move in moves:
            move()
    for message in report.warnings:
        warn(message)
    if as_json:
        click.echo(report.to_json())
    elif not quiet:
        table.show(report, verbose=verbose)
    if fail_if_unchanged and not report.improved:
        raise UnchangedError(f"nothing in '{model}' was improved")


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of `settings` that do not have their default."""
    source = click.get_current_context().get_parameter_source
    return {name: value for name, value in settings.items() if source(name) is not ParameterSource.DEFAULT}
