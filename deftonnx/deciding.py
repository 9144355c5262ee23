"""Who decides, for a run, which rewrites pay: a GPU that is measured on, the model of one, or nobody."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from deftonnx.calibration.readers import Feed
from deftonnx.cost.judge import Clock, Judge, places
from deftonnx.cost.roofline import RATES, ModelClock, Rates
from deftonnx.errors import UnsupportedError
from deftonnx.report.measure import first_samples
from deftonnx.runtime import cuda
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.gpus import GPUS, chosen_device
from deftonnx.runtime.library import LibraryNotFoundError, get_library_path
from deftonnx.settings import AUTOMATIC, FP32, Settings
from deftonnx.shapes import observed_shapes

BUDGET = 180.0
"""Seconds that measuring may take; the layers after that are estimated."""
PROBE = 2
DEFAULT_GPU = "h100"
"""Whose model decides where there is no GPU and none was named."""
AUTOMATIC_FORMAT = "deft8:4"
"""What is timed in place of the formats that choose their exponent bits."""


def judge_for(
    settings: Settings,
    graph: gs.Graph,
    origin: onnx.ModelProto,
    feeds: list[Feed],
    progress: Callable[[str], None],
) -> Judge | None:
    """The judge of a run, or None where nothing is to be decided: for another target, without packed formats and
    elimination, or where the model could not be run to see its shapes."""
    idle = settings.format == FP32 and settings.density in (None, 1)
    if settings.target != "cuda" or settings.decide_by == "nothing" or settings.portable or idle or not feeds:
        return None
    measuring = settings.decide_by == "measurement" or (settings.decide_by == "auto" and cuda.obstacle() is None)
    if measuring and (obstacle := cuda.obstacle()):
        raise UnsupportedError(f"--decide-by measurement: {obstacle}")
    probe = first_samples(feeds[0], graph.inputs, PROBE)
    samples = min((len(value) for value in probe.values() if value.ndim), default=1)
    shapes = observed_shapes(graph, origin, probe)
    if shapes is None or samples < 1:
        return None
    free = all(isinstance(t.shape[0], str) or not t.shape[0] for t in graph.inputs if t.shape)
    device = (chosen_device(settings.gpu) if settings.gpu or measuring else None) or GPUS[DEFAULT_GPU]
    model = ModelClock(device, _rates(device), _library())
    clock: Clock = model
    if measuring:
        from deftonnx.cost.gpu_clock import GpuClock  # who does not measure need not load what makes sessions

        clock = GpuClock(BUDGET)
    kind = TensorProto.FLOAT if settings.precision == "keep" else TensorProto.FLOAT16
    format_name = AUTOMATIC_FORMAT if settings.format in AUTOMATIC else settings.format
    batches = settings.batches if free else (samples,)
    known = places(graph, shapes, samples)
    return Judge(clock, model, batches, kind, format_name, known, progress, settings.compute)


def _rates(device: Device) -> Rates:
    """Those of the GPU of that name, else of the one most like it."""
    named = {gpu.name: name for name, gpu in GPUS.items()}
    if device.name in named:
        return RATES[named[device.name]]

    def distance(name: str) -> tuple[int, int]:
        gpu = GPUS[name]
        return abs(gpu.capability - device.capability), abs(gpu.multiprocessors - device.multiprocessors)

    return RATES[min(GPUS, key=distance)]


def _library() -> str | None:
    try:
        return get_library_path()
    except LibraryNotFoundError:
        return None
