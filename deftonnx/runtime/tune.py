"""Measures the operator library's kernels on the GPU of this machine, for the table that corrects its estimates."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from deftonnx.errors import UnsupportedError
from deftonnx.formats import GEMM_FORMAT_NAMES, PackedWeight, pack_weight
from deftonnx.formats.gemm_function import ANY_KERNEL, PACKED, attach_gemm_functions, gemm_node, weight_tensors
from deftonnx.runtime import cuda
from deftonnx.runtime.bench import device_value
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.kernel_choice import TimedKernel, kernels_for
from deftonnx.runtime.tuning_table import Point

FORMATS = tuple(name for name in GEMM_FORMAT_NAMES if not name.startswith("deft8:") or name in ("deft8:4", "deft8:7"))
"""Kernels do not tell the deft8 apart, but for 6 and 7 exponent bits."""
X_TYPES: dict[int, Any] = {
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.FLOAT: np.float32,
}
KEPT_BLOCKS = (0, 64)
"""All features, and every other block of 64."""
ROWS = (1, 8, 16, 64, 256, 1024, 4096)
SIZES = ((1024, 1024), (1024, 4096), (4096, 1024), (4096, 4096))  # K, N
QUICK_ROWS, QUICK_SIZES = (1, 16, 128, 2048), ((2048, 2048),)

_COLD_BYTES = 96 << 20  # of weights, more than any L2 cache holds, as in a real model
_MOST_LAYERS = 32
_ROUNDS = 3
_ROUND_SECONDS = 0.004

Progress = Callable[[str], None]


@dataclass
class Shape:
    """Every kernel at one shape: nanoseconds, measured and estimated, by kernel."""

    format: str
    x_type: int
    block: int
    M: int
    K: int
    N: int
    measured: dict[str, float] = field(default_factory=dict)
    estimated: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """How much longer the kernel of the least estimate takes than the fastest."""
        chosen = min(self.measured, key=lambda kernel: self.estimated[kernel])
        return self.measured[chosen] / min(self.measured.values())


def tune(library: str, quick: bool, progress: Progress) -> list[Shape]:
    """Measure every kernel of `library` that can serve, over formats, types of X and shapes.

    Raises UnsupportedError where the CUDA provider cannot be used, or the library has no kernels for the GPU.
    """
    if reason := cuda.obstacle():
        raise UnsupportedError(f"tuning needs a GPU: {reason}")
    device = cuda.devices()[0]
    rows, sizes = (QUICK_ROWS, QUICK_SIZES) if quick else (ROWS, SIZES)
    shapes = []
    for layers in _all_layers(sizes):
        progress(str(layers))
        shapes += measure(layers, rows, device, library)
    if not shapes:
        raise UnsupportedError(f"the operator library has no kernels for {device.name}")
    return shapes


def points(shapes: Sequence[Shape]) -> dict[str, list[Point]]:
    """What was measured, by kernel; the mean where one was measured in several formats at a shape."""
    found: dict[str, dict[tuple[int, int, int], list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for shape in shapes:
        for kernel, measured in shape.measured.items():
            found[kernel][shape.M, shape.K, shape.N].append((measured, shape.estimated[kernel]))
    return {kernel: [_mean(where, pairs) for where, pairs in places.items()] for kernel, places in found.items()}


def _mean(where: tuple[int, int, int], pairs: list[tuple[float, float]]) -> Point:
    measured = math.exp(statistics.fmean(math.log(m) for m, _ in pairs))
    estimated = math.exp(statistics.fmean(math.log(e) for _, e in pairs))
    return (*where, round(measured, 1), round(estimated, 1))


@dataclass(frozen=True)
class Layers:
    """`count` DeftGemm nodes side by side over one X, with weights of their own. K features are kept of `features`."""

    format: str
    x_type: int
    block: int
    K: int
    N: int
    weight: PackedWeight

    def __str__(self) -> str:
        kept = f", kept blocks of {self.block}" if self.block else ""
        return f"{self.format}, {TensorProto.DataType.Name(self.x_type).lower()}, K {self.K}, N {self.N}{kept}"

    @property
    def features(self) -> int:
        """Features of X."""
        return 2 * self.K if self.block else self.K

    @property
    def count(self) -> int:
        """Enough layers that their weights do not stay in the L2 cache."""
        return max(1, min(_MOST_LAYERS, math.ceil(_COLD_BYTES / self.weight.nbytes)))

    def node(self, index: int = 0, kernel: str = ANY_KERNEL) -> onnx.NodeProto:
        """Layer `index`, by one kernel."""
        inputs = ["X", f"W{index}", f"W{index}_scale", "bias", *(["kept"] if self.block else [])]
        return gemm_node(
            inputs,
            f"Y{index}",
            self.weight,
            name=f"layer{index}",
            features=self.features,
            block=self.block,
            activation="relu",
            output_type=self.x_type,
            compute=kernel,
        )

    def model(self, kernel: str) -> onnx.ModelProto:
        """All layers, by one kernel."""
        initializers = [numpy_helper.from_array(np.zeros(self.N, np.float32), "bias")]
        if self.block:
            kept = np.arange(0, self.features // self.block, 2, dtype=np.int32)
            initializers.append(numpy_helper.from_array(kept, "kept"))
        for i in range(self.count):
            initializers += weight_tensors(self.weight, f"W{i}")
        graph = helper.make_graph(
            [self.node(i, kernel) for i in range(self.count)],
            "layers",
            [helper.make_tensor_value_info("X", self.x_type, ["M", self.features])],
            [helper.make_tensor_value_info(f"Y{i}", self.x_type, ["M", self.N]) for i in range(self.count)],
            initializers,
        )
        opsets = [helper.make_opsetid("", 20)]
        return attach_gemm_functions(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def _all_layers(sizes: Sequence[tuple[int, int]]) -> Iterator[Layers]:
    rng = np.random.default_rng(0)
    for K, N in sizes:
        sample = rng.standard_normal((K, 64)).astype(np.float32)
        for name in FORMATS:
            few = pack_weight(sample, name)
            codes = np.resize(few.codes, (N, few.codes.shape[1]))
            weight = PackedWeight(name, codes, np.resize(few.scale, N), K)
            for x_type in X_TYPES:
                for block in KEPT_BLOCKS:
                    yield Layers(name, x_type, block, K, N, weight)


def measure(layers: Layers, rows: Sequence[int], device: Device, library: str) -> list[Shape]:
    """Measure every kernel that can serve `layers`, at each of `rows`; none if there are none.

    Kernels that multiply an unpacked copy of 8-bit weights take as long as with weights of 16 bits, which are measured.
    """
    w_type = weight_tensors(layers.weight, "W")[0].data_type
    try:
        candidates = kernels_for(layers.node(kernel=PACKED), layers.x_type, w_type, rows, device, library)
    except UnsupportedError:
        return []
    runners = {name: _Runner(layers, name, library) for name in {c.kernel for c in candidates}}
    shapes = []
    for M in rows:
        x = np.random.default_rng(M).standard_normal((M, layers.features)).astype(X_TYPES[layers.x_type])
        shape = Shape(layers.format, layers.x_type, layers.block, M, layers.K, layers.N)
        served = [c for c in candidates if c.M == M]
        _time_together(shape, served, {c.kernel: runners[c.kernel].bind(x) for c in served}, layers.count)
        shapes.append(shape)
    return [shape for shape in shapes if shape.measured]


def _time_together(
    shape: Shape, candidates: Sequence[TimedKernel], runs: dict[str, Callable[[int], float]], layers: int
) -> None:
    """Fill in `shape`: the median of rounds in which the kernels take turns, each for some milliseconds."""
    least = {kernel: min(run(2) for _ in range(3)) for kernel, run in runs.items()}  # one may be held up
    repeats = {kernel: max(2, min(200, int(_ROUND_SECONDS / seconds))) for kernel, seconds in least.items()}
    samples: dict[str, list[float]] = {kernel: [] for kernel in runs}
    for _ in range(_ROUNDS):
        for kernel, run in runs.items():
            samples[kernel].append(run(repeats[kernel]))
    for candidate in candidates:
        shape.measured[candidate.kernel] = statistics.median(samples[candidate.kernel]) / layers * 1e9
        shape.estimated[candidate.kernel] = candidate.estimate


class _Runner:
    """A session of layers by one kernel, as a CUDA graph for each number of rows."""

    def __init__(self, layers: Layers, kernel: str, library: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.register_custom_ops_library(library)
        provider: Any = (cuda.PROVIDER, {"enable_cuda_graph": "1"})
        self._session = onnxruntime.InferenceSession(
            layers.model(kernel).SerializeToString(), options, providers=[provider], enable_fallback=0
        )
        self._layers = layers

    def bind(self, x: np.ndarray[Any, Any]) -> Callable[[int], float]:
        """Return a function that makes so many runs over `x` and gives the seconds of one."""
        binding = self._session.io_binding()
        M, N = x.shape[0], self._layers.N
        values = [device_value(x)]
        binding.bind_ortvalue_input("X", values[0])
        for i in range(self._layers.count):
            values.append(onnxruntime.OrtValue.ortvalue_from_shape_and_type([M, N], self._layers.x_type, "cuda", 0))
            binding.bind_ortvalue_output(f"Y{i}", values[-1])
        last, earlier = onnxruntime.RunOptions(), onnxruntime.RunOptions()
        for options in (last, earlier):
            options.add_run_config_entry("gpu_graph_id", str(M))
        earlier.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._session.run_with_iobinding(binding, last)  # captures

        def run(count: int, keep: object = values) -> float:
            start = time.perf_counter()
            for _ in range(count - 1):
                self._session.run_with_iobinding(binding, earlier)
            self._session.run_with_iobinding(binding, last)
            return (time.perf_counter() - start) / count

        return run
