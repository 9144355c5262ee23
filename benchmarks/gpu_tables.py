"""Tables of what was measured on a GPU, as Markdown with the file, date and commits that they are from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "h200"
Row = dict[str, Any]
NOTHING = "Not measured yet."
FP8_PRODUCTS_PER_MICROSECOND = 132 * 4096 * 1830
"""Of an H200: multiprocessors, products a cycle, cycles."""


def load(name: str) -> dict[str, Any] | None:
    """The result file of that part, if there is one."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def source(name: str, content: dict[str, Any], rows: Iterable[Row] = ()) -> str:
    """Where a table is from."""
    about = content.get("environment", content)
    commits = dict.fromkeys([str(row.get("commit", about["commit"]))[:7] for row in rows] or [str(about["commit"])[:7]])
    path = (RESULTS / f"{name}.json").relative_to(ROOT)
    return f"From `{path}` ({str(about['date'])[:10]}, {about['gpu']}, commit {', '.join(commits)})."


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def summary(ratios: list[float]) -> str:
    """The geometric mean and the range."""
    return f"{geometric_mean(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "–"


# -- whole models ---------------------------------------------------------------------------------------------------

STOCK = "ort "
SHORT_SESSION_S = 0.02
"""Sessions that are made in less are shown to a tenth of a millisecond."""
FP32, FP16, DENSE, HALF, COMPILED = "ort fp32", "ort fp16", "deft dense16", "deft density 0.5", "torch.compile fp16"


def milliseconds(row: Row, variant: str) -> float | None:
    """The median of a variant, if it was measured."""
    times = row["variants"].get(variant, {}).get("ms")
    return times[0] if times else None


def best_stock(row: Row) -> tuple[str, float]:
    """ONNX Runtime's fastest setting."""
    found = {name: milliseconds(row, name) for name in row["variants"] if name.startswith(STOCK)}
    return min(((name, ms) for name, ms in found.items() if ms is not None), key=lambda pair: pair[1])


def ratio(row: Row, slow: str, fast: str) -> float | None:
    """How many times as fast `fast` is."""
    before, after = milliseconds(row, slow), milliseconds(row, fast)
    return before / after if before and after else None


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def _model_rows(content: dict[str, Any]) -> list[Row]:
    return [row for row in content["rows"] if milliseconds(row, DENSE) is not None]


def models() -> str:
    """All models and batch sizes."""
    content = load("models")
    if content is None:
        return NOTHING
    rows = _model_rows(content)
    head = ["network", "batch", "ORT fp32", "ORT best", "its setting", "torch.compile fp16", "dense16", "density 0.5"]
    head += ["dense16 to ORT best", "to ORT fp32", "to torch.compile", "error"]
    lines = []
    for row in rows:
        setting, ms = best_stock(row)
        line = [row["model"], str(row["batch"]), _ms(milliseconds(row, FP32)), _ms(ms), setting.removeprefix(STOCK)]
        line += [_ms(milliseconds(row, name)) for name in (COMPILED, DENSE, HALF)]
        line += [_times(ratio(row, name, DENSE)) for name in (setting, FP32, COMPILED)]
        difference = row["variants"][DENSE].get("difference")
        lines.append([*line, "–" if difference is None else f"{difference:.1e}"])
    notes = [
        "Milliseconds a run, median. ORT fp32 is without TF32. ORT best is the fastest of its settings measured: TF32,"
        " float16, channels last (`prefer_nhwc`), its optimizer for transformers. CUDA graphs are on wherever they can"
        " be. Error is ‖Δ‖/‖y‖ of dense16 against float32; weights are random. " + source("models", content, rows)
    ]
    for batch in sorted({row["batch"] for row in rows}):
        some = [row for row in rows if row["batch"] == batch]
        gains = [found for row in some if (found := ratio(row, best_stock(row)[0], DENSE))]
        further = [found for row in some if (found := ratio(row, DENSE, HALF))]
        notes.append(
            f"\nAt batch {batch}: dense16 over ORT best {summary(gains)}, density 0.5 over dense16 {summary(further)}."
        )
    return "\n".join([table(head, lines), "", *notes])


def footprints() -> str:
    """What sessions take before they give anything: time to make one, and memory."""
    content = load("models")
    shown = (FP32, FP16, DENSE, HALF)
    rows = [] if content is None else [row for row in content["rows"] if _gpu_mib(row, DENSE) is not None]
    if content is None or not rows:
        return NOTHING
    names = [name.removeprefix("deft ") for name in shown]
    head = ["network", *(f"{name}, ms" for name in names), *(f"{name}, MiB" for name in names)]
    lines = []
    for row in rows:
        seconds = [row["variants"].get(name, {}).get("session_s") for name in shown]
        line = [row["model"], *("–" if s is None else f"{1e3 * s:.{int(s < SHORT_SESSION_S)}f}" for s in seconds)]
        lines.append([*line, *("–" if (m := _gpu_mib(row, name)) is None else f"{m}" for name in shown)])
    note = (
        "Milliseconds to make a session in a process that has made one before, and GPU memory that it holds once it has"
        f" run at batch {rows[0]['batch']}, with memory requested as it is needed. {source('models', content, rows)}"
    )
    return "\n".join([table(head, lines), "", note])


def _gpu_mib(row: Row, variant: str) -> int | None:
    found: int | None = row["variants"].get(variant, {}).get("gpu_mib")
    return found


def models_summary() -> str:
    """Batch 64 alone, and fewer columns."""
    content = load("models")
    if content is None:
        return NOTHING
    rows = [row for row in _model_rows(content) if row["batch"] == 64]
    head = ["network, batch 64", "ORT fp32", "ORT best", "torch.compile fp16", "dense16", "gain on ORT best"]
    lines = []
    for row in rows:
        setting, ms = best_stock(row)
        line = [row["model"], _ms(milliseconds(row, FP32)), _ms(ms)]
        line += [_ms(milliseconds(row, COMPILED)), _ms(milliseconds(row, DENSE))]
        lines.append([*line, _times(ratio(row, setting, DENSE))])
    note = "Milliseconds a run; [docs/performance.md](docs/performance.md) has the rest. "
    note += source("models", content, rows)
    return "\n".join([table(head, lines), "", note])


# -- layers ---------------------------------------------------------------------------------------------------------


def _us(row: Row, name: str) -> float | None:
    times = row["us"].get(name)
    return times[0] if times else None


def _least(row: Row, *starts: str) -> float | None:
    found = [times[0] for name, times in row["us"].items() if name.startswith(starts)]
    return min(found) if found else None


def _over(slow: float | None, fast: float | None) -> float | None:
    return slow / fast if slow and fast else None


def _shape(row: Row) -> str:
    return "×".join(str(size) for size in row["shape"])


def _micro(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def linear_layers(name: str, part: str, activation: str) -> str:
    """Linear layers with a fused epilogue; 8-bit weights where the part measures them."""
    content = load(name)
    if content is None:
        return NOTHING
    has_codes = any(_least(row, "deft deft8") for row in content[part])
    head = ["M×K×N", "16-bit", "cuBLASLt fused", "ORT float16", "16-bit to cuBLASLt"]
    lines, gains = [], []
    for row in content[part]:
        half, base = _least(row, "deft half", "deft deft16"), _least(row, "cublaslt fused")
        gain = _over(base, half)
        gains += [gain] if gain else []
        line = [_shape(row), *(_micro(t) for t in (half, base, _us(row, "ort float16"))), _times(gain)]
        if has_codes:
            eight = _least(row, "deft deft8")
            line += [_micro(eight), _times(_over(_us(row, "deft half"), eight))]
        lines.append(line)
    note = (
        f"Microseconds a layer, median, with bias and {activation}, weights not in the L2 cache where that is"
        " affordable; the best of float16 and bfloat16 for 16-bit and for cuBLASLt"
        + ("; 8-bit weights have float16 X, as what they are compared with" if has_codes else "")
        + f". 16-bit to cuBLASLt: {summary(gains)}. {source(name, content, content[part])}"
    )
    return "\n".join([table([*head, *(["8-bit", "8-bit to 16-bit"] if has_codes else [])], lines), "", note])


def gemm_streaming() -> str:
    """Few rows: what of the copy bandwidth is reached."""
    content = load("gemm_streaming")
    if content is None:
        return NOTHING
    lines = []
    for row in content["streaming"]:
        share = row["weight_bytes_per_second_over_copy"]
        slowest, fastest = min(share, key=share.__getitem__), max(share, key=share.__getitem__)
        base = _us(row, "cublaslt fused bfloat16")
        line = [_shape(row), row["dtype"], _micro(_us(row, fastest)), _micro(_us(row, slowest))]
        line += [slowest.removeprefix("deft "), f"{share[slowest]:.0%}", _times(_over(base, _us(row, slowest)))]
        lines.append(line)
    note = (
        "8-bit weights of every E from 1 to 7, microseconds a layer, median. The last two columns are of the slowest E:"
        " the bandwidth of its weights in parts of a copy's, and its speed over cuBLASLt's in bfloat16. "
    )
    head = ["M×K×N", "X", "fastest E", "slowest E", "which", "of the copy bandwidth", "to cuBLASLt fused"]
    return "\n".join([table(head, lines), "", note + source("gemm_streaming", content, content["streaming"])])


def gemm_codes() -> str:
    """8-bit weights with more rows, against our own 16-bit kernels."""
    content = load("gemm_codes")
    if content is None:
        return NOTHING
    formats = ("deft8:3", "deft8:4", "deft8:5", "deft8:3 packed")
    lines = []
    for row in content["codes"]:
        wide = _us(row, "deft half") or _us(row, "deft deft16")
        speeds = [_times(_over(wide, _us(row, f"deft {name}"))) for name in formats]
        lines.append([_shape(row), row["dtype"], _micro(wide), *speeds])
    note = (
        "Microseconds a layer with 16-bit weights, median, with bias and ReLU, and the speed of 8-bit weights over it;"
        " packed: without a copy in 16 bits. "
    )
    head = ["M×K×N", "X", "16-bit", *formats]
    return "\n".join([table(head, lines), "", note + source("gemm_codes", content, content["codes"])])


def gemm_fp8() -> str:
    """Weights and activations in 8 bits."""
    content = load("gemm_fp8")
    if content is None:
        return NOTHING
    names = ("deft fp8", "deft deft16", "cublaslt fused bfloat16", "cublas bare bfloat16")
    lines = []
    for row in content["fp8"]:
        times = [_us(row, name) for name in names]
        floor = math.prod(row["shape"]) / FP8_PRODUCTS_PER_MICROSECOND
        lines.append([_shape(row), *(_micro(t) for t in times), _times(row["gain"]), _micro(floor)])
    note = (
        "Microseconds a layer, median, with bias and ReLU, X in bfloat16 and its rounding to 8 bits included; cuBLAS"
        " bare has neither bias nor ReLU. The floor is that of the FP8 tensor cores at 1.83 GHz. "
        + source("gemm_fp8", content, content["fp8"])
    )
    head = ["M×K×N", "fp8", "16-bit", "cuBLASLt fused", "cuBLAS bare", "fp8 to the better", "floor"]
    return "\n".join([table(head, lines), "", note])


def gemm_chains() -> str:
    """32 layers in a session."""
    content = load("gemm_chains")
    if content is None:
        return NOTHING
    lines = []
    for row in content["chains"]:
        half, eight, stock = (_us(row, name) for name in ("deft half", "deft deft8:4", "ort float16"))
        nodes = str(row["deft_nodes"]["half"])
        line = [_shape(row), "yes" if row["cuda_graph"] else "no", nodes, *(_micro(t) for t in (half, eight, stock))]
        lines.append([*line, _times(_over(stock, half)), _times(_over(stock, eight))])
    note = "Microseconds a layer, median, of 32 layers with bias and ReLU that feed each other in a session. "
    head = ["M×K×N", "CUDA graph", "our nodes", "16-bit", "8-bit", "ORT float16", "16-bit to ORT", "8-bit to ORT"]
    return "\n".join([table(head, lines), "", note + source("gemm_chains", content, content["chains"])])


def gemm_elimination() -> str:
    """Density 0.5 in the kernel."""
    content = load("gemm_elimination")
    if content is None:
        return NOTHING
    blocks = ("block:64", "block:32", "block:16", "block:8")
    lines = []
    for row in content["elimination"]:
        dense = _us(row, "dense")
        lines.append([_shape(row), _micro(dense), *(_times(_over(dense, _us(row, block))) for block in blocks)])
    note = f"Gain on our own dense kernel at density 0.5. {source('gemm_elimination', content, content['elimination'])}"
    head = ["M×K×N", "dense, µs", *blocks[:-1], "vector (8)"]
    return "\n".join([table(head, lines), "", note])


def _layer(row: Row) -> str:
    layer = row["layer"]
    kernel = f"{layer['kernel']}×{layer['kernel']}" + (f"/{layer['stride']}" if layer["stride"] > 1 else "")
    return f"{layer['image']}², {layer['channels']} → {layer['outputs']}, {kernel}"


def _apart(row: Row) -> float | None:
    """cuDNN and then the faster of PyTorch's and ONNX Runtime's elementwise kernels."""
    bare, elementwise = _us(row, "torch none"), _us(row, "ort elementwise")
    found = [_us(row, "torch apart"), bare + elementwise if bare and elementwise else None]
    return min((us for us in found if us), default=None)


def convolutions() -> str:
    """Layers of ResNet-50 and VGG-16, dense."""
    content = load("conv_speed")
    rows = [row for row in (content or {"rows": []})["rows"] if row["part"] == "dense"]
    if content is None or not rows:
        return NOTHING
    lines = []
    gains: dict[str, list[float]] = {"torch none": [], "torch fused": [], "torch apart": []}
    for row in rows:
        ours = _us(row, "deft")
        line = [row["network"], str(row["batch"]), _layer(row) + (", residual" if row["layer"]["residual"] else "")]
        others = {name: _us(row, name) for name in gains} | {"torch apart": _apart(row)}
        line += [_micro(us) for us in (ours, *others.values())]
        for name, us in others.items():
            gain = _over(us, ours)
            if gain and not (name == "torch none" and row["layer"]["residual"]):
                gains[name].append(gain)
        lines.append([*line, _times(_over(others["torch none"], ours))])
    head = ["network", "batch", "layer", "DeftConv", "cuDNN bare", "cuDNN fused", "cuDNN, then elementwise", "to bare"]
    note = (
        "Microseconds a layer, median. DeftConv adds bias, residual and ReLU; bare cuDNN adds nothing. DeftConv to bare"
        f" cuDNN, where there is no residual, {summary(gains['torch none'])}, to fused {summary(gains['torch fused'])},"
        f" to cuDNN and elementwise kernels {summary(gains['torch apart'])}. {source('conv_speed', content, rows)}"
    )
    return "\n".join([table(head, lines), "", note])


def convolutions_eliminated() -> str:
    """Density 0.5 in the kernel, for layers of 1,000 features or more."""
    content = load("conv_speed")
    rows = [row for row in (content or {"rows": []})["rows"] if row["part"] == "eliminated"]
    if content is None or not rows:
        return NOTHING
    blocks = ("block:64", "block:8")
    lines = []
    for row in rows:
        dense, bare = _least(row, "dense"), _us(row, "torch none")
        line = [row["network"], str(row["batch"]), _layer(row), _micro(dense)]
        line += [_times(_over(dense, _us(row, block))) for block in blocks]
        lines.append([*line, _times(_over(bare, _us(row, "block:64")))])
    head = ["network", "batch", "layer", "dense, µs", *blocks[:-1], "vector (8)", "block:64 to bare cuDNN"]
    note = f"Gain on our own dense kernel at density 0.5. {source('conv_speed', content, rows)}"
    return "\n".join([table(head, lines), "", note])


def fission() -> str:
    """The paper's comparison on the FP32 units."""
    content = load("fission")
    if content is None:
        return NOTHING
    counters = content.get("counters", {})
    sizes = [row["size"] for row in content["fission"]]
    lines = []
    for name in content["fission"][0]["us"]:
        line = [name, *(f"{row['speedup'][name]:.2f}" for row in content["fission"])]
        counted = counters.get(name)
        shown = ("shared_load_bytes_per_multiply_add", "shared_load_percent_of_peak", "issue_slots_percent")
        lines.append([*line, *(f"{counted[key]:.3g}" if counted else "–" for key in shown)])
    head = ["packed", *(f"speed at {size}³" for size in sizes)]
    head += ["bytes loaded a multiply-add", "shared memory, % of peak", "issue slots, %"]
    note = f"Speed in parts of that without fission. {source('fission', content)}"
    return "\n".join([table(head, lines), "", note])


def gpu_tests() -> str:
    """What was tested, in a sentence."""
    content = load("gpu_tests")
    if content is None:
        return NOTHING
    counts = ", ".join(f"{content[key]} {key}" for key in ("failures", "errors", "skipped"))
    stopped = f", {content['stopped']} of the processes stopped by a time limit" if content.get("stopped") else ""
    return f"{content['tests']} tests on the GPU: {counts}{stopped}. {source('gpu_tests', content)}"


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "footprints": footprints,
    "gemm_shapes": partial(linear_layers, "gemm_shapes", "shapes", "ReLU"),
    "gemm_gelu": partial(linear_layers, "gemm_gelu", "gelu", "GELU"),
    "gemm_streaming": gemm_streaming,
    "gemm_codes": gemm_codes,
    "gemm_fp8": gemm_fp8,
    "gemm_chains": gemm_chains,
    "gemm_elimination": gemm_elimination,
    "convolutions": convolutions,
    "convolutions_eliminated": convolutions_eliminated,
    "fission": fission,
    "gpu_tests": gpu_tests,
}
