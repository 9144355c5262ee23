"""DeftConv on the layers of ResNet-50 and VGG-16 against cuDNN (through PyTorch, channels last, benchmark=True).

    python benchmarks/conv_speed.py [--batch 64] [--network resnet50|vgg16] [--part dense|eliminated] [--output FILE]

Candidates take turns in one process, fifteen rounds, all in CUDA graphs and float16; figures are microseconds a
layer, median and range. cuDNN is timed without any epilogue and with its own fused ones; where a layer has a residual
also followed by PyTorch's elementwise kernels, and ONNX Runtime's are timed alone. DeftConv always adds bias and ReLU,
and the residual where the network has one. Needs PyTorch with CUDA and ONNX Runtime's CUDA provider.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import record
import torch  # before onnxruntime: it brings the CUDA libraries into the process
from gemm_sessions import random_packed
from gemm_speed import Run, environment, time_together

import numpy as np  # isort: skip
import onnx  # isort: skip
import onnxruntime as ort  # isort: skip
from onnx import TensorProto, helper, numpy_helper  # isort: skip

from deftonnx import runtime
from deftonnx.formats.conv_function import Window, attach_conv_functions, conv_attributes, conv_node
from deftonnx.formats.gemm_function import weight_tensors

ROUND_SECONDS = 0.002
OUTPUT_BYTES = 600e6  # of a candidate's layers together
PARTS = ("dense", "eliminated")
KEPT_BLOCKS = (64, 8)  # channels
LEAST_FEATURES = 1000  # of a layer whose elimination is measured
SIDE_BY_SIDE = {64: 12, 1: 40}  # layers of a run, by batch: what a run costs on the CPU must stay hidden


@dataclass(frozen=True)
class Layer:
    """A convolution of a network: image size and channels of X, output channels, square filter and stride."""

    image: int
    channels: int
    outputs: int
    kernel: int
    stride: int = 1
    residual: bool = False

    @property
    def features(self) -> int:
        return self.kernel * self.kernel * self.channels

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def output_image(self) -> int:
        return (self.image + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def window(self) -> Window:
        """As DeftConv's attributes."""
        pads = (self.padding,) * 4
        return Window.of((self.kernel,) * 2, (self.stride,) * 2, pads)


NETWORKS = {
    "resnet50": [
        Layer(224, 3, 64, 7, 2),
        *(Layer(56, 64, 64, 1), Layer(56, 64, 64, 3), Layer(56, 64, 256, 1, residual=True), Layer(56, 256, 64, 1)),
        *(Layer(56, 256, 128, 1), Layer(56, 128, 128, 3, 2), Layer(56, 256, 512, 1, 2)),
        *(Layer(28, 128, 512, 1, residual=True), Layer(28, 512, 128, 1), Layer(28, 128, 128, 3)),
        *(Layer(28, 512, 256, 1), Layer(28, 256, 256, 3, 2), Layer(28, 512, 1024, 1, 2)),
        *(Layer(14, 256, 1024, 1, residual=True), Layer(14, 1024, 256, 1), Layer(14, 256, 256, 3)),
        *(Layer(14, 1024, 512, 1), Layer(14, 512, 512, 3, 2), Layer(14, 1024, 2048, 1, 2)),
        *(Layer(7, 512, 2048, 1, residual=True), Layer(7, 2048, 512, 1), Layer(7, 512, 512, 3)),
    ],
    "vgg16": [
        *(Layer(224, 3, 64, 3), Layer(224, 64, 64, 3), Layer(112, 64, 128, 3), Layer(112, 128, 128, 3)),
        *(Layer(56, 128, 256, 3), Layer(56, 256, 256, 3), Layer(28, 256, 512, 3), Layer(28, 512, 512, 3)),
        Layer(14, 512, 512, 3),
    ],
}


@dataclass(frozen=True)
class Timing:
    """A layer at a batch size, `count` times side by side, so that what is timed is layers and not calls."""

    layer: Layer
    batch: int

    @property
    def output_shape(self) -> list[int]:
        return [self.batch, self.layer.output_image, self.layer.output_image, self.layer.outputs]

    @property
    def count(self) -> int:
        return int(max(1, min(SIDE_BY_SIDE[self.batch], OUTPUT_BYTES / (2 * math.prod(self.output_shape)))))


def deft_model(timing: Timing, compute: str, block: int = 0, residual: bool = False) -> onnx.ModelProto:
    """The layers as DeftConv nodes; with a block, half of the blocks are kept."""
    layer = timing.layer
    image = [timing.batch, layer.image, layer.image, layer.channels]
    inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT16, image)]
    initializers = [numpy_helper.from_array(np.full(layer.outputs, 0.1, np.float32), "bias")]
    kept = np.array([], np.int32)
    features = layer.features
    if block:
        rng = np.random.default_rng(1)
        kept = np.sort(rng.permutation(features // block)[: features // block // 2]).astype(np.int32)
        features = kept.size * block
    initializers.append(numpy_helper.from_array(kept, "kept"))
    if residual:
        inputs.append(helper.make_tensor_value_info("R", TensorProto.FLOAT16, timing.output_shape))
    nodes, outputs = [], []
    for i in range(timing.count):
        packed = random_packed("half", features, layer.outputs, i)
        packed = replace(packed, scale=np.ones_like(packed.scale))  # as every weight in half has
        initializers += weight_tensors(packed, f"W{i}")
        options: dict[str, Any] = {"block": block, "activation": "relu", "output_type": TensorProto.FLOAT16}
        attributes = conv_attributes(packed, layer.window, layer.channels, compute=compute, **options)
        names = ["X", f"W{i}", f"W{i}_scale", "bias", "kept", *(["R"] if residual else [])]
        nodes.append(conv_node(names, f"Y{i}", attributes, f"n{i}"))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT16, timing.output_shape))
    graph = helper.make_graph(nodes, "layers", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 20)]
    return attach_conv_functions(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def deft_runner(timing: Timing, compute: str = "auto", block: int = 0, residual: bool = False) -> Run | None:
    """One run of the layers as DeftConv nodes; None where that kernel does not serve the layer."""
    try:
        return session_runner(deft_model(timing, compute, block, residual))
    except Exception as error:
        if "no kernel" not in str(error):
            raise
        return None


def elementwise_runner(timing: Timing) -> Run:
    """ONNX Runtime's Add and Relu over the layers' outputs, which are all the same here."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, timing.output_shape) for n in ("X", "R")]
    nodes, outputs = [], []
    for i in range(timing.count):
        nodes += [helper.make_node("Add", ["X", "R"], [f"Z{i}"]), helper.make_node("Relu", [f"Z{i}"], [f"Y{i}"])]
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT16, timing.output_shape))
    graph = helper.make_graph(nodes, "elementwise", values, outputs)
    return session_runner(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def session_runner(model: onnx.ModelProto) -> Run:
    """One run of the model in a CUDA graph of a session, inputs and outputs on the GPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    runtime.register(options)
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": "1"})
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider])
    binding = session.io_binding()
    rng = np.random.default_rng(2)
    keep = []
    for value in session.get_inputs():
        sample = rng.standard_normal(1_000_003, np.float32).astype(np.float16)  # a prime: no period of the image's
        array = np.resize(sample, value.shape)
        keep.append(ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        binding.bind_ortvalue_input(value.name, keep[-1])
    for value in session.get_outputs():
        keep.append(ort.OrtValue.ortvalue_from_shape_and_type(value.shape, np.float16, "cuda", 0))
        binding.bind_ortvalue_output(value.name, keep[-1])
    run_options = ort.RunOptions()
    run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(keep: object = keep) -> None:
        session.run_with_iobinding(binding, run_options)

    return run


def torch_runner(timing: Timing, end: str) -> Run:
    """A CUDA graph of the layers in PyTorch. end: none, fused or apart, with the residual if there is one."""
    layer, batch = timing.layer, timing.batch
    half = {"device": "cuda", "dtype": torch.float16}
    last = torch.channels_last
    x = torch.randn(batch, layer.channels, layer.image, layer.image, **half).to(memory_format=last)
    filters = (timing.count, layer.outputs, layer.channels, layer.kernel, layer.kernel)
    weights = [w.to(memory_format=last) for w in torch.randn(filters, **half) / layer.features**0.5]
    bias = torch.randn(layer.outputs, **half)
    n, h, w, c = timing.output_shape
    residual = torch.randn(n, c, h, w, **half).to(memory_format=last)
    window = ((layer.stride,) * 2, (layer.padding,) * 2, (1, 1), 1)

    def convolve(weight: torch.Tensor) -> torch.Tensor:
        if end == "fused" and layer.residual:
            return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *window)
        if end == "fused":
            return torch.cudnn_convolution_relu(x, weight, bias, *window)
        y = torch.conv2d(x, weight, bias if end == "apart" else None, *window)
        if end == "apart":
            y = torch.relu_(y.add_(residual)) if layer.residual else torch.relu_(y)
        return y

    def compute() -> list[torch.Tensor]:
        return [convolve(weight) for weight in weights]

    for _ in range(2):
        compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = compute()

    def run(keep: object = (x, weights, bias, residual, outputs)) -> None:
        graph.replay()

    return run


def candidates(timing: Timing, parts: Collection[str]) -> Iterator[tuple[str, Run | None]]:
    """What is timed together for the parts."""
    residual = timing.layer.residual
    yield "torch none", torch_runner(timing, "none")
    if "dense" in parts:
        yield "deft", deft_runner(timing, residual=residual)
    if "dense" in parts and residual:
        yield "torch fused", torch_runner(timing, "fused")
        yield "torch apart", torch_runner(timing, "apart")
        yield "ort elementwise", elementwise_runner(timing)
    if "eliminated" in parts:
        for block in KEPT_BLOCKS:
            yield f"block:{block}", deft_runner(timing, block=block)
        yield "dense", deft_runner(timing, "fp16_hopper")  # our own, whatever cuDNN does


def parts_of(timing: Timing, asked: Collection[str]) -> list[str]:
    """The asked parts that a layer has."""
    eliminated = timing.batch > 1 and timing.layer.features >= LEAST_FEATURES
    return [part for part in asked if part == "dense" or eliminated]


def times_of(part: str, us: dict[str, list[float]]) -> dict[str, list[float]]:
    """Of what was timed together, what belongs to the part."""
    eliminated = [*(f"block:{block}" for block in KEPT_BLOCKS), "dense"]
    others = eliminated if part == "dense" else ("deft", "torch fused", "torch apart", "ort elementwise")
    return {name: times for name, times in us.items() if name not in others}


def ratios(part: str, us: dict[str, list[float]]) -> dict[str, float]:
    """How many times as fast a row's DeftConv is as what it is compared with, by the medians."""
    t = {name: times[0] for name, times in us.items()}
    if part == "eliminated":
        pairs = {f"block:64 over {name}": t[name] / t["block:64"] for name in ("dense", "torch none")}
        return pairs | {"block:8 over dense": t["dense"] / t["block:8"]}
    if "torch fused" not in t:
        return {"deft over bare": t["torch none"] / t["deft"]}
    apart = min(t["torch apart"], t["torch none"] + t["ort elementwise"])
    return {"with residual over fused": t["torch fused"] / t["deft"], "with residual over apart": apart / t["deft"]}


def geometric_means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The geometric mean of every ratio, by part and batch."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, ratio in ratios(row["part"], row["us"]).items():
            found.setdefault(f"{row['part']}, batch {row['batch']}, {name}", []).append(ratio)
    return {name: round(math.exp(statistics.fmean(map(math.log, values))), 3) for name, values in found.items()}


def _show(row: dict[str, Any]) -> None:
    times = {name: values[0] for name, values in row["us"].items()}
    found = {name: round(ratio, 2) for name, ratio in ratios(row["part"], row["us"]).items()}
    print(row["part"], row["batch"], *row["layer"].values(), times, found, flush=True)


def main() -> None:
    """Measure the asked parts and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--output", type=Path, default=Path("conv_speed.json"))
    parser.add_argument("--commit", help="what was built, where this is no checkout")
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    result: dict[str, Any] = {
        "environment": environment(arguments.commit or record.commit()),
        "unit": "microseconds a layer: median, least, greatest",
        "rows": [],
    }
    for batch in arguments.batch or (64, 1):
        for network in arguments.network or NETWORKS:
            for layer in NETWORKS[network]:
                timing = Timing(layer, batch)
                parts = parts_of(timing, arguments.part or PARTS)
                runs = {name: run for name, run in candidates(timing, parts) if run is not None}
                if not parts:
                    continue
                us = time_together(runs, timing.count, ROUND_SECONDS)
                for part in parts:
                    row = {"part": part, "batch": batch, "network": network, "layer": vars(layer)}
                    result["rows"].append(row | {"us": times_of(part, us)})
                    _show(result["rows"][-1])
                result["geometric_means"] = geometric_means(result["rows"])
                arguments.output.write_text(json.dumps(result, indent=1) + "\n")
                del runs
                torch.cuda.empty_cache()
    print(json.dumps(result["geometric_means"], indent=1))


if __name__ == "__main__":
    main()
