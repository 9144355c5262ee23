"""Puts a model's size, latency and accuracy into its report."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnx import numpy_helper

from deftonnx import evaluation, model_file
from deftonnx.calibration import readers
from deftonnx.errors import UsageError
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.formats.mlp_function import attributes_of, gemms_of, is_mlp, layer_inputs
from deftonnx.formats.operator_function import stated_integer
from deftonnx.model import Model, byte_size, is_apart
from deftonnx.report.report import Report, Size

SLOWER = 1.1
"""Median latencies further apart than this factor are taken for a difference, not for noise."""
GPU_SECONDS = 0.05
"""Of a model in one round on the GPU."""
BATCH = 64
"""Samples run at once, where the model's batch dimension is free."""
PROBE = 4
"""Samples that one stage's result is compared with the next's on: they must agree to rounding, which shows in few."""


def size(model: Model) -> Size:
    """Bytes and parameters of `model`; multiply-adds are counted elsewhere. A packed weight counts K · N."""
    packed = [
        node
        for node in model.shell.graph.node
        if is_gemm(node.domain, node.op_type) or is_mlp(node.domain, node.op_type)
    ]
    of_packed = {name for node in packed for name in node.input}
    constants = [t for t in model_file.constants(model) if len(t.dims) > 0]
    biases = {t.name: int(np.prod(t.dims)) for t in constants if t.name in of_packed and _is_bias(t, model)}
    parameters = sum(int(np.prod(t.dims)) for t in constants if t.name not in of_packed)
    parameters += sum(K * N + biases.get(bias, 0) for node in packed for K, N, bias in _layers(node))
    weight_bytes = sum(map(_bytes, constants))
    return Size(bytes=byte_size(model), parameters=parameters, macs=0, weight_bytes=weight_bytes)


def _layers(node: onnx.NodeProto) -> list[tuple[int, int, str]]:
    """K, N and the bias of each layer that a node with packed weights is. Raises FormatError if one is missing."""
    if is_gemm(node.domain, node.op_type):
        bias = next(iter(node.input[3:]), "")
        return [(stated_integer(node, "K"), stated_integer(node, "N"), bias)]
    layers = gemms_of(attributes_of(node))
    return [(x["K"], x["N"], inputs[2]) for x, inputs in zip(layers, layer_inputs(node.input), strict=True)]


def _is_bias(tensor: onnx.TensorProto, model: Model) -> bool:
    """True for a vector of floats that are not all zero, as a layer without a bias has them."""
    vector = tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 1
    return vector and bool((model.weights[tensor.name] if is_apart(tensor) else numpy_helper.to_array(tensor)).any())


def _bytes(tensor: onnx.TensorProto) -> int:
    if tensor.raw_data:
        return len(tensor.raw_data)
    return int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def scored_data(
    eval_data: Any, inputs: list[gs.Variable], feeds: list[readers.Feed], calibrated: bool
) -> tuple[list[readers.Feed], Any, str]:
    """What to score on: the evaluation data with its labels, else what the run had; and its name."""
    if eval_data is None:
        return feeds, None, "calibration data" if calibrated else "made-up inputs"
    dataset = readers.read(eval_data, inputs, "the evaluation data")
    scored = readers.batches(dataset, inputs, None, 0, BATCH)
    return scored, dataset.labels_of(scored), "evaluation data"


def measure(
    report: Report,
    origin: Callable[[], Model],
    new: onnxruntime.InferenceSession,
    scored: tuple[list[readers.Feed], Any, str],
    reference: evaluation.Outputs | None,
    metric: str | None,
    latency_of: readers.Feed | None,
) -> None:
    """Score the model of `new` against `origin`, and time both on this CPU with the feed `latency_of`, if any.

    `reference`: what `origin` makes of what is scored on, where that is known.
    """
    feeds, labels, scored_on = scored
    got = evaluation.run(new, feeds)
    if reference is None or latency_of is not None:
        old = evaluation.session(origin(), runs_often=latency_of is not None or len(feeds) > 1)
        reference = evaluation.run(old, feeds)
    chosen = metric or ("top1" if labels is not None else "rel-l2")
    try:
        report.accuracy, report.accuracy_on = evaluation.score(chosen, got, reference, labels), scored_on
    except UsageError as problem:  # how much an output holds may depend on the data, and so on rounding
        if metric is not None:
            raise
        report.warnings.append(f"the result was not scored on the {scored_on}: {problem}")
    if latency_of is not None:
        report.before.latency_ms, report.after.latency_ms = evaluation.latencies([old, new], latency_of)
        was, now = (statistics.median(side.latency_ms) for side in (report.before, report.after))
        if now > SLOWER * was:
            report.warnings.append(f"the result is slower on this CPU: {now:.3g} ms instead of {was:.3g} ms a sample")


def measure_on_gpu(report: Report, origin: Model, final: Model, feed: readers.Feed, batches: Sequence[int]) -> None:
    """Time both models on this machine's GPU with the samples of `feed`, repeated to fill each of `batches`."""
    from deftonnx.runtime import bench  # who does not measure need not load what makes sessions

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("before.onnx", "after.onnx")]
        for model, path in zip((origin, final), paths, strict=True):
            model_file.save(model, path)
        for batch in batches:
            inputs = {name: value.take(np.arange(batch) % len(value), axis=0) for name, value in feed.items()}
            settings = bench.Settings("cuda", inputs=inputs, seconds=GPU_SECONDS, footprint=False)
            old, new = (result.p50 for result in bench.bench(paths, settings, lambda text: None))
            report.gpu_ms[batch] = (old, new)
            if new > SLOWER * old:
                report.warnings.append(
                    f"the result is slower on this GPU at batch {batch}: {new:.3g} ms, not {old:.3g}"
                )


def first_samples(feed: readers.Feed, inputs: list[gs.Variable], count: int) -> readers.Feed:
    """The first `count` samples of `feed`, or all of it where the model fixes its batch."""
    free = all(t.shape and not (isinstance(t.shape[0], int) and t.shape[0] > 0) for t in inputs)
    return {name: value[:count] for name, value in feed.items()} if free else feed
