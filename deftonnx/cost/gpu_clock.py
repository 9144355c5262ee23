"""Times of layers, measured in CUDA sessions of ONNX Runtime on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from deftonnx.cost.trial import trial, x_shape
from deftonnx.cost.work import Form, Work
from deftonnx.runtime import cuda
from deftonnx.runtime.bench import device_value
from deftonnx.runtime.session import register_if_built

ROUNDS = 5
ROUND_SECONDS = 0.003
MOST_RUNS = 200

Run = Callable[[int], float]
"""Makes so many runs and gives the seconds of one layer."""


class GpuClock:
    """Answers with measured times while `budget` seconds last. A form that does not run has none."""

    how = "measured"

    def __init__(self, budget: float) -> None:
        self._left = budget

    def seconds(self, work: Work, forms: Sequence[Form], batches: Sequence[int]) -> dict[Form, list[float]] | None:
        """Seconds of `work` in each of `forms`, one for each batch; None when the budget is spent.

        The forms take turns; inputs and outputs stay on the GPU, runs are CUDA graphs.
        """
        if self._left <= 0:
            return None
        started = time.perf_counter()
        runners = {form: runner for form in forms if (runner := _Runner.of(work, form)) is not None}
        times: dict[Form, list[float]] = {form: [] for form in runners}
        for batch in batches:
            runs = {form: run for form, runner in runners.items() if (run := runner.bind(batch)) is not None}
            measured = _take_turns(runs)
            times = {form: [*times[form], measured[form]] for form in runs if form in times}
        self._left -= time.perf_counter() - started
        return times


def _take_turns(runs: dict[Form, Run]) -> dict[Form, float]:
    repeats = {form: max(2, min(MOST_RUNS, int(ROUND_SECONDS / max(run(2), 1e-7)))) for form, run in runs.items()}
    samples: dict[Form, list[float]] = {form: [] for form in runs}
    for number in range(ROUNDS):
        order = list(runs) if number % 2 == 0 else list(reversed(runs))  # nobody is always first
        for form in order:
            samples[form].append(runs[form](repeats[form]))
    return {form: statistics.median(rounds) for form, rounds in samples.items()}


class _Runner:
    """A session of a trial model."""

    def __init__(self, work: Work, form: Form, model: onnx.ModelProto, layers: int) -> None:
        self._work, self._form, self._layers = work, form, layers
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        register_if_built(options)
        providers: list[Any] = [(cuda.PROVIDER, {"enable_cuda_graph": "1"})]
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=providers, enable_fallback=0
        )

    @classmethod
    def of(cls, work: Work, form: Form) -> _Runner | None:
        """None where ONNX Runtime refuses the model."""
        try:
            return cls(work, form, *trial(work, form))
        except Exception:  # ONNX Runtime's own errors have no common class
            return None

    def bind(self, batch: int) -> Run | None:
        """Runs at one batch size, captured; None where they fail."""
        shape = x_shape(self._work, self._form, batch)
        dtype = helper.tensor_dtype_to_np_dtype(self._form.type)
        x = device_value(np.random.default_rng(0).standard_normal(shape).astype(np.float32).astype(dtype))
        names = [output.name for output in self._session.get_outputs()]
        first, binding = self._session.io_binding(), self._session.io_binding()
        for each in (first, binding):
            each.bind_ortvalue_input("X", x)
        for name in names:
            first.bind_output(name, "cuda")
        try:
            # a run that is not captured tells the outputs' shapes, and lets DeftConv measure its kernels
            self._session.run_with_iobinding(first, _options(-1))
            values = first.get_outputs()
            for name, value in zip(names, values, strict=True):
                binding.bind_ortvalue_output(name, value)
            last, earlier = _options(batch), _options(batch)
            earlier.add_run_config_entry("disable_synchronize_execution_providers", "1")
            self._session.run_with_iobinding(binding, last)  # captures
        except Exception:
            return None

        def run(count: int, keep: object = (x, values)) -> float:
            start = time.perf_counter()
            for _ in range(count - 1):
                self._session.run_with_iobinding(binding, earlier)
            self._session.run_with_iobinding(binding, last)
            return (time.perf_counter() - start) / count / self._layers

        return run


def _options(graph: int) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
