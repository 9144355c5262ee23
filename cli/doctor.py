"""`deftonnx doctor`: what this machine can run, and what would become of a model on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from deftonnx.cli.bench import free_axis
from rich.console import Console
from rich.table import Table

from deftonnx.report.report import to_json
from deftonnx.report.table import wide_console
from deftonnx.runtime import doctor as examining
from deftonnx.runtime.gpus import GPUS


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--batch", type=click.IntRange(min=1), help="Length of the model's first axis. Default: 1.")
@click.option("--dim", "sizes", metavar="NAME=LENGTH", multiple=True, help="Length of a free axis. May be repeated.")
@click.option("--gpu", metavar="NAME", help=f"Kernels on another GPU: {', '.join(GPUS)}.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def doctor(model: Path | None, batch: int | None, sizes: tuple[str, ...], gpu: str | None, as_json: bool) -> None:
    """Say what runs here: ONNX Runtime and its providers, CUDA, the GPU, the operator library.

    With MODEL also the kernel of each DeftGemm node, those among which each DeftConv node chooses, the layers of each
    DeftMlp node, copies between GPU and host, nodes left on the CPU, and whether a CUDA graph can be made of it. Works
    without a GPU, and then says what is not known.
    """
    content = examining.examine_machine(gpu)
    if model is not None:
        content["model"] = examining.examine_model(model, batch, dict(free_axis(text) for text in sizes), gpu)
    if as_json:
        click.echo(to_json(content))
        return
    console = wide_console()
    _show_machine(console, content)
    if model is not None:
        _show_model(console, content["model"])


def _show_machine(console: Console, content: dict[str, Any]) -> None:
    facts = content["environment"]
    rows = Table.grid(padding=(0, 2))
    rows.add_row("deftonnx", f"{facts['deftonnx']}, Python {facts['python']}, {facts['platform']}")
    packages = facts["onnxruntime_packages"]
    rows.add_row("ONNX Runtime", f"{facts['onnxruntime']} ({', '.join(packages) or 'not from a Python package'})")
    if len(packages) > 1:
        rows.add_row("", "more than one package overwrite each other's files: keep one")
    for name, found in content["providers"].items():
        state = {True: "can be used", False: found["reason"], None: "in this build, not looked into"}
        rows.add_row("", f"{name}: {state[found['usable']]}")
    for name, path in content["cuda_libraries"].items():
        rows.add_row(f"lib{name}", path or "not found")
    driver = facts["driver"]
    rows.add_row("NVIDIA driver", f"{driver}, runs CUDA {facts['driver_cuda']}" if driver else "none")
    gpu = content["gpu"]
    rows.add_row("GPU", _gpu(gpu) if gpu else "none")
    _add_library(rows, content["library"])
    console.print(rows)


def _gpu(gpu: dict[str, Any]) -> str:
    memory = f"{gpu['memory_bytes'] / 2**30:.0f} GiB"
    capability = f"{gpu['capability'] // 10}.{gpu['capability'] % 10}"
    return f"{gpu['name']}, compute capability {capability}, {gpu['multiprocessors']} multiprocessors, {memory}"


def _add_library(rows: Table, library: dict[str, Any]) -> None:
    if library["path"]:
        kernels = ", ".join(f"sm_{arch}: {count}" for arch, count in library["kernels"].items()) or "none"
        rows.add_row("operator library", library["path"])
        rows.add_row("", f"version {library['version']}, kernels {kernels}")
    if tuning := library.get("tuning"):
        rows.add_row("", f"tuning table {tuning['path']}" + (f", {tuning['problem']}" if tuning["problem"] else ""))
    if library["problem"]:
        rows.add_row("" if library["path"] else "operator library", library["problem"])


def _show_model(console: Console, model: dict[str, Any]) -> None:
    own = ", ".join(f"{count} {name}" for name, count in model["deft_nodes"].items()) or "none of ai.deftonnx"
    console.print(f"\n{model['path']}: {model['nodes']} nodes, {own}")
    if model["gemms"]:
        table = Table()
        for column in ("DeftGemm node", "format", "X", "M", "K", "N", "kernel"):
            table.add_column(column, justify="right" if column in ("M", "K", "N") else "left", overflow="fold")
        for x in model["gemms"]:
            M = "?" if x["M"] is None else str(x["M"])
            table.add_row(x["name"], x["format"], x["x_type"], M, str(x["K"]), str(x["N"]), x["kernel"] or x["reason"])
        console.print(table)
    if model["mlps"]:
        table = Table()
        for column in ("DeftMlp node", "formats", "X", "M", "features"):
            table.add_column(column, justify="right" if column == "M" else "left", overflow="fold")
        for x in model["mlps"]:
            M = "?" if x["M"] is None else str(x["M"])
            formats = ", ".join(dict.fromkeys(x["formats"]))
            table.add_row(x["name"], formats, x["x_type"], M, " → ".join(map(str, x["widths"])))
        console.print(table)
    if model["convs"]:
        table = Table()
        for column in ("DeftConv node", "format", "X", "images", "K", "N", "kernels that the first run measures"):
            table.add_column(column, justify="right" if column in ("K", "N") else "left", overflow="fold")
        for x in model["convs"]:
            images = "?" if x["image"] is None else "×".join(map(str, x["image"]))
            kernels = ", ".join(x["kernels"]) or x["reason"]
            table.add_row(x["name"], x["format"], x["x_type"], images, str(x["K"]), str(x["N"]), kernels)
        console.print(table)
    if model["memcpy"] is not None:
        console.print(f"copies between GPU and host (Memcpy nodes): {model['memcpy']}")
    if model["on_cpu"] is not None:
        console.print(f"nodes on the CPU: {', '.join(model['on_cpu']) or 'none'}")
    if model["cuda_graph"] is not None:
        console.print(f"CUDA graph: {'yes' if model['cuda_graph'] else 'no, ' + model['cuda_graph_obstacle']}")
    if model["unknown"]:
        what = "" if model["cuda_graph"] is not None else " and CUDA graph"
        console.print(f"copies, nodes on the CPU{what}: {model['unknown']}")
