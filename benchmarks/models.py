"""Whole models on the GPU: ONNX Runtime's stock settings, torch.compile and `optimize --preset dense16`, side by side.

    python benchmarks/models.py --output benchmarks/results/<gpu>/models.json [--models resnet50 …] [--batches 64 1]
        [--variants NAME …] [--folder DIR] [--prepare] [--prepared] [--no-compile] [--limit SECONDS]

Every model is exported on the spot (networks.py) and written in each form, all models side by side. --prepare does only
that, into --folder, and fills torch.compile's cache; --prepared measures what is there. All variants of one batch size
run in turn in one process, with inputs and outputs on the GPU and CUDA graphs on; a variant that cannot be captured
runs without, and says so. Figures are milliseconds a run: median, least and most. At batch 64 it is recorded as well
how many seconds a session takes to make and how much GPU memory it holds. The file is written after every model; with
--limit no model is begun after so many seconds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import gc
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch  # before onnxruntime: it brings the CUDA libraries into the process

import onnxruntime as ort  # isort: skip
from networks import BATCH_AXIS, NETWORKS, export, module, sample
from record import write
from turns import turns

import deftonnx
from deftonnx.allocation import keep_freed_memory
from deftonnx.runtime.footprint import Footprint, footprint, repeated
from deftonnx.runtime.session import register_if_built

WARM_UP = 3
ROUNDS = 7
ROUND_SECONDS = 0.02
PROCESSES = max(1, (os.cpu_count() or 2) - 2)
SHARED_CORES = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
"""What keeps processes that prepare models side by side from taking all cores each."""
COMPILED = "torch.compile fp16"
LEAST_COMPILED = 64
"""The batch from which on torch.compile is measured: it takes half a minute a network and batch."""
FOOTPRINT = 64
"""The batch at which sessions are measured themselves, see deftonnx/runtime/footprint.py."""
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "ort fp32": ("fp32", {"use_tf32": "0"}),
    "ort tf32": ("fp32", {}),
    "ort fp16": ("fp16", {}),
    "ort fp16 nhwc": ("fp16", {"prefer_nhwc": "1"}),
    "ort transformers fp16": ("tuned", {}),
    "deft dense16": ("dense16", {}),
    "deft density 0.5": ("density0.5", {}),
}
"""By name: the form of the model, and options of the CUDA provider."""
OPTIMIZED: dict[str, dict[str, Any]] = {
    "dense16": {},
    "density0.5": {"density": 0.5, "granularity": "fastest", "criterion": "magnitude", "refit": "none"},
}
"""Options beside --preset dense16. The weights are random, so that no choice of features is better than another."""


def prepare(name: str, form: str, folder: Path) -> None:
    """Write the model in one form into `folder`."""
    keep_freed_memory()
    path, part = folder / f"{name}.{form}.onnx", folder / f"{name}.{form}.part"
    try:
        if form == "fp32":
            export(name, part)
        elif form in OPTIMIZED:
            _optimize(name, form, folder, part)
        else:
            _stock(name, form, folder, part)
        part.rename(path)
    except Exception as error:
        print(f"  {name}, {form}: {str(error).splitlines()[0][:150]}", flush=True)


def _optimize(name: str, form: str, folder: Path, output: Path) -> None:
    """Our own tool; what became of the model goes into a JSON file beside it."""
    started = time.perf_counter()
    feed = {key: value.numpy() for key, value in sample(name, 4).items()}
    path = folder / f"{name}.fp32.onnx"
    # processes side by side disturb each other's measurements: a model of the GPU says what pays
    options = {"preset": "dense16", "decide_by": "model", "measure": False, **OPTIMIZED[form]}
    result = deftonnx.optimize(path, calib_data=feed, **options)
    result.save(output)
    left = [f"{refusal.op} {refusal.name}: {refusal.reason}" for refusal in result.report.left_in_float32]
    ops: dict[str, int] = {}
    for node in result.model.graph.node:
        ops[node.op_type] = ops.get(node.op_type, 0) + 1
    units: dict[str, int] = {}
    for row in result.report.layers:
        units[row.granularity or "all kept"] = units.get(row.granularity or "all kept", 0) + 1
    seconds = round(time.perf_counter() - started, 1)
    macs = round(result.report.after.macs / result.report.before.macs, 3)
    about = {"seconds": seconds, "macs": macs, "operators": ops, "granularities": units, "left_in_float32": left}
    (folder / f"{name}.{form}.json").write_text(json.dumps(about))


def _stock(name: str, form: str, folder: Path, output: Path) -> None:
    """ONNX Runtime's own tools: its float16 converter, and its optimizer for transformers."""
    network, plain = NETWORKS[name], folder / f"{name}.fp32.onnx"
    if form == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(plain), keep_io_types=True), output)
    else:
        from onnxruntime.transformers.optimizer import optimize_model

        made = optimize_model(str(plain), network.family, **network.heads, opt_level=0, use_gpu=True)
        made.convert_float_to_float16(keep_io_types=True)
        made.save_model_to_file(str(output))


def _providers(choice: dict[str, str]) -> list[Any]:
    """The CUDA provider with these options and memory as models need it, and the CPU."""
    return [("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested", **choice}), "CPUExecutionProvider"]


class Runner:
    """A session of one variant at one batch size."""

    def __init__(self, path: Path, options: dict[str, str], batch: int, library: bool, graph: bool) -> None:
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        # the batch is known, as in a model exported for it: shapes are folded, so that most models can be captured
        settings.add_free_dimension_override_by_name(BATCH_AXIS, batch)
        if library:
            register_if_built(settings)
        choice = {**options, "enable_cuda_graph": "1" if graph else "0"}
        self.session = ort.InferenceSession(str(path), settings, providers=_providers(choice))

    def warm(self, inputs: dict[str, np.ndarray], like: np.ndarray) -> None:
        """Bind the inputs and the first output, in places that stay, and run."""
        self.binding = self.session.io_binding()
        self.values = {name: ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for name, value in inputs.items()}
        for name, value in self.values.items():
            self.binding.bind_ortvalue_input(name, value)
        self.output = ort.OrtValue.ortvalue_from_numpy(np.zeros_like(like), "cuda", 0)
        self.binding.bind_ortvalue_output(self.session.get_outputs()[0].name, self.output)
        for _ in range(WARM_UP):
            self()

    def __call__(self) -> None:
        self.session.run_with_iobinding(self.binding)

    def result(self) -> np.ndarray:
        """What the last run gave."""
        return np.asarray(self.output.numpy())


def ready(
    path: Path, options: dict[str, str], inputs: dict[str, np.ndarray], like: np.ndarray, library: bool
) -> tuple[Runner, Callable[[], Runner], bool, Footprint | None]:
    """A warm runner, what makes it again, whether it has a CUDA graph, as it has if the model can be captured, and what
    its session takes, which is measured at batch FOOTPRINT alone.

    library: whether its session has our operators.
    """
    batch = len(like)
    for graph in (True, False):
        try:
            create = functools.partial(Runner, path, options, batch, library, graph)
            if batch != FOOTPRINT:
                runner = create()
                runner.warm(inputs, like)
                return runner, create, graph, None
            runner, needs = footprint(create, lambda runner: runner.warm(inputs, like))
            return runner, create, graph, needs
        except Exception as error:
            if not graph:
                raise
            print(f"    without a CUDA graph: {str(error).splitlines()[0][:150]}", flush=True)
    raise AssertionError


def compiled(name: str, inputs: dict[str, np.ndarray]) -> Callable[[], None]:
    """torch.compile in float16, captured in a CUDA graph of our own."""
    network = module(name).cuda().half()
    tensors = {key: torch.from_numpy(value).cuda() for key, value in inputs.items()}
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    if all(value.ndim == 4 for value in tensors.values()):
        network = network.to(memory_format=torch.channels_last)
        tensors = {key: value.to(memory_format=torch.channels_last) for key, value in tensors.items()}
    function = torch.compile(network, dynamic=False)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            function(*tensors.values())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            function(*tensors.values())

    def run() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return run


def timed(runners: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Milliseconds a run in ROUNDS rounds; the runners take turns."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    counts = {}
    for name, run in runners.items():
        started = time.perf_counter()
        run()
        counts[name] = max(3, int(ROUND_SECONDS / (time.perf_counter() - started)))
    for name in turns(runners, ROUNDS):
        started = time.perf_counter()
        for _ in range(counts[name]):
            runners[name]()
        times[name].append(1e3 * (time.perf_counter() - started) / counts[name])
    return times


def measure(name: str, batch: int, folder: Path, variants: list[str], with_compile: bool) -> dict[str, Any]:
    """All variants of one model at one batch size."""
    inputs = {key: value.numpy() for key, value in sample(name, batch).items()}
    original = ort.InferenceSession(str(folder / f"{name}.fp32.onnx"), providers=_providers({"use_tf32": "0"}))
    want = np.asarray(original.run(None, inputs)[0])
    del original
    runners: dict[str, Callable[[], None]] = {}
    rows: dict[str, Any] = {}
    needed: dict[str, tuple[Callable[[], Runner], Footprint]] = {}
    for variant in variants:
        form, options = VARIANTS[variant]
        path = folder / f"{name}.{form}.onnx"
        if not path.exists():
            continue
        try:
            runner, create, graph, needs = ready(path, options, inputs, want, form in OPTIMIZED)
        except Exception as error:
            rows[variant] = {"error": str(error).splitlines()[0][:300]}
            print(f"    {variant}: {rows[variant]['error']}", flush=True)
            continue
        difference = float(np.linalg.norm(runner.result().astype(np.float64) - want) / np.linalg.norm(want))
        rows[variant] = {"cuda_graph": graph, "difference": difference}
        runners[variant] = runner
        if needs is not None:
            needed[variant] = create, needs
    again = repeated([create for create, _ in needed.values()], [needs for _, needs in needed.values()])
    for variant, needs in zip(needed, again, strict=True):
        rows[variant] |= {"session_s": round(needs.session_s, 4), "gpu_mib": round((needs.gpu_bytes or 0) / 2**20)}
    if with_compile:
        try:
            runners[COMPILED] = compiled(name, inputs)
            rows[COMPILED] = {"cuda_graph": True}
        except Exception as error:
            rows[COMPILED] = {"error": str(error).splitlines()[0][:300]}
    for variant, times in timed(runners).items():
        rows[variant]["ms"] = [round(f(times), 4) for f in (statistics.median, min, max)]
        print(f"  {name} {batch} {variant}: {rows[variant]}", flush=True)
    del runners
    gc.collect()
    about = {form: folder / f"{name}.{form}.json" for form in OPTIMIZED}
    optimized = {form: json.loads(path.read_text()) for form, path in about.items() if path.exists()}
    return {"model": name, "batch": batch, "variants": rows, "optimize": optimized}


def _prepare_all(options: argparse.Namespace) -> None:
    """What is not there yet, every file in a process of its own; beside it torch.compile, which takes as long."""
    options.folder.mkdir(parents=True, exist_ok=True)
    missing = [(name, form) for name in options.models for form in _forms(name, options.variants)]
    missing = [(name, form) for name, form in missing if not (options.folder / f"{name}.{form}.onnx").exists()]
    warm = [(name, batch) for name in options.models for batch in options.batches if _compiles(options, batch)]
    if not missing and not options.prepare:
        return
    os.environ |= SHARED_CORES
    with concurrent.futures.ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        plain = {name: pool.submit(prepare, name, "fp32", options.folder) for name, form in missing if form == "fp32"}
        compiling = [pool.submit(_warm, name, batch) for name, batch in warm]
        rest = [(name, form) for name, form in missing if form != "fp32"]
        tasks = [pool.submit(prepare, name, form, options.folder) for name, form in rest if name not in plain]
        exported = {task: name for name, task in plain.items()}
        for task in concurrent.futures.as_completed(exported):
            own = [form for name, form in rest if name == exported[task]]
            tasks += [pool.submit(prepare, exported[task], form, options.folder) for form in own]
        concurrent.futures.wait([*compiling, *tasks])


def _compiles(options: argparse.Namespace, batch: int) -> bool:
    return bool(options.compile) and batch >= LEAST_COMPILED


def _forms(name: str, variants: list[str]) -> set[str]:
    """The forms that these variants of a model need."""
    forms = {VARIANTS[variant][0] for variant in variants} | {"fp32"}
    return forms - (set() if NETWORKS[name].family else {"tuned"})


def _warm(name: str, batch: int) -> None:
    """Fill torch.compile's cache on disk."""
    try:
        compiled(name, {key: value.numpy() for key, value in sample(name, batch).items()})
    except Exception as error:
        print(f"  {name} {batch}: torch.compile: {str(error).splitlines()[0][:150]}", flush=True)


def main() -> None:
    """Run what the command line names."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--models", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 1])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.models"))
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--prepared", action="store_true")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no model is begun")
    options = parser.parse_args()
    if not options.prepared:
        _prepare_all(options)
    if options.prepare:
        return
    rows = []
    for batch in options.batches:
        for name in options.models:
            if time.perf_counter() - started > options.limit:
                print(f"  {name} {batch}: no time left", flush=True)
                continue
            try:
                rows.append(measure(name, batch, options.folder, options.variants, _compiles(options, batch)))
            except Exception as error:
                print(f"  {name} {batch}: {str(error).splitlines()[0][:300]}", flush=True)
                continue
            if options.output is not None:
                device = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
                write(options.output, {**device, "unit": "ms: median, least, most", "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
