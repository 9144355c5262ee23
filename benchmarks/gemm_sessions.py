"""Models and sessions of many equal linear layers, so that what is timed is layers and not calls.

Layers side by side have weights of their own, more than the L2 cache together where weights are what costs; where
that is too little work to hide what a run costs on the CPU, they are repeated with further X. Chained layers feed each
other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch  # before onnxruntime: it brings the CUDA libraries into the process

import onnxruntime as ort  # isort: skip
from onnx import TensorProto, helper, numpy_helper

import deftonnx
from deftonnx import runtime
from deftonnx.formats import PackedWeight, get_format
from deftonnx.formats.deft8 import Deft8
from deftonnx.formats.deft16 import round_to_bfloat16
from deftonnx.formats.fp8 import Fp8
from deftonnx.formats.gemm_function import attach_gemm_functions, gemm_node
from deftonnx.formats.packed import padded

ONNX_TYPE = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Layers:
    """`count` linear layers of (M, K) by (K, N) with an activation, in `dtype`, chained or side by side.

    Side by side they are computed for `repeats` matrices X, one after the other.
    """

    M: int
    K: int
    N: int
    dtype: str = "float16"
    activation: str = "relu"
    count: int = 1
    chained: bool = False
    kept_block: int = 0
    features: int | None = None  # of X, where kept_block selects K of them
    repeats: int = 1
    any_rows: bool = False  # the model leaves M open

    @property
    def nodes(self) -> int:
        """Layers in a run."""
        return self.count * self.repeats

    def source(self, node: int) -> str:
        """The name of what a node reads."""
        return f"Y{node - 1}" if self.chained and node else f"X{node // self.count}"


@dataclass(frozen=True)
class LayersModel:
    """A model without its large weights, and these beside it: copying them takes longer than all else."""

    model: onnx.ModelProto
    weights: dict[str, np.ndarray]  # by initializer, of the type that the model says


def random_packed(name: str, K: int, N: int, seed: int) -> PackedWeight:
    """A weight of random codes, N(0, 1 / K) or about; made from a smaller random block, repeated."""
    rng = np.random.default_rng(seed)
    sample = rng.standard_normal(1 << 20).astype(np.float32)
    scale = np.full(N, K**-0.5, np.float32)
    if name == "half":
        codes = sample.astype(np.float16).view(np.uint16)
    elif name == "deft16":
        codes = round_to_bfloat16(sample)
    elif name == "deft16q":
        codes = get_format(name).pack(sample[:, None]).codes[0]
    elif name == "fp32":
        codes = sample.view(np.uint32)
    else:
        packing = get_format(name)
        assert isinstance(packing, Deft8 | Fp8)
        one = packing.pack(sample[:, None])
        codes, scale = one.codes[0], scale * one.scale[0]
    row = padded(K) // (2 if name == "deft16q" else 1)
    return PackedWeight(name, np.resize(np.roll(codes, seed * 997), (N, row)), scale, K)


def packed_model(layers: Layers, name: str, compute: str = "auto") -> LayersModel:
    """The layers as DeftGemm nodes in format `name`."""
    element = ONNX_TYPE[layers.dtype]
    features = layers.features or layers.K
    nodes, initializers = [], [numpy_helper.from_array(np.full(layers.N, 0.1, np.float32), "bias")]
    kept = np.arange(0, features // layers.kept_block, 2, dtype=np.int32) if layers.kept_block else None
    if kept is not None:
        initializers.append(numpy_helper.from_array(kept, "kept"))
    weights = [random_packed(name, layers.K, layers.N, i) for i in range(layers.count)]
    for i, packed in enumerate(weights):
        initializers.append(_placeholder(f"W{i}", get_format(name).onnx_type, packed.codes))
        initializers.append(numpy_helper.from_array(packed.scale, f"W{i}_scale"))
    for i in range(layers.nodes):
        packed, weight = weights[i % layers.count], f"W{i % layers.count}"
        inputs = [layers.source(i), weight, f"{weight}_scale", "bias", *(["kept"] if kept is not None else [])]
        options: dict[str, Any] = {"features": features, "block": layers.kept_block, "output_type": element}
        nodes.append(
            gemm_node(
                inputs,
                f"Y{i}",
                packed,
                name=f"n{i}",
                activation=layers.activation,
                compute=compute,
                **options,
            )
        )
    model = attach_gemm_functions(_model(layers, nodes, initializers, features))
    return LayersModel(model, {f"W{i}": packed.codes for i, packed in enumerate(weights)})


def stock_model(layers: Layers) -> LayersModel:
    """The layers as MatMul, Add and Relu or Gelu in `dtype`."""
    element = ONNX_TYPE[layers.dtype]
    bias = TensorProto(name="bias", data_type=element, dims=[layers.N])
    bias.raw_data = _cast(np.full(layers.N, 0.1, np.float32), element).tobytes()
    nodes, initializers, weights = [], [bias], {}
    operator = {"relu": "Relu", "gelu": "Gelu", "none": "Identity"}[layers.activation]
    for i in range(layers.count):
        sample = np.random.default_rng(i).standard_normal(1 << 20).astype(np.float32) * layers.K**-0.5
        weights[f"W{i}"] = np.resize(_cast(sample, element), (layers.K, layers.N))
        initializers.append(_placeholder(f"W{i}", element, weights[f"W{i}"]))
    for i in range(layers.nodes):
        nodes.append(helper.make_node("MatMul", [layers.source(i), f"W{i % layers.count}"], [f"P{i}"]))
        nodes.append(helper.make_node("Add", [f"P{i}", "bias"], [f"Z{i}"]))
        nodes.append(helper.make_node(operator, [f"Z{i}"], [f"Y{i}"]))
    return LayersModel(_model(layers, nodes, initializers, layers.K), weights)


def optimised_model(layers: Layers, name: str) -> LayersModel:
    """What `deftonnx optimize` makes of the layers in format `name`, for any rows, with those of the layers then."""
    stock = stock_model(dataclasses.replace(layers, any_rows=True))
    for tensor in stock.model.graph.initializer:
        if tensor.name in stock.weights:
            tensor.CopyFrom(numpy_helper.from_array(stock.weights[tensor.name], tensor.name))
    result = deftonnx.optimize(stock.model, preset="dense16", format=name, decide_by="model", measure=False)
    for value in (*result.model.graph.input, *result.model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = layers.M
    return LayersModel(result.model, {})


def session_runner(built: LayersModel, layers: Layers, *, packed: bool, graph: bool) -> Callable[[], None]:
    """Return a function that enqueues one run of the model on the GPU, with inputs and outputs there."""
    return bound_runner(open_session(built, packed=packed, graph=graph), layers)


def open_session(built: LayersModel, *, packed: bool, graph: bool) -> ort.InferenceSession:
    """A session of the model on the GPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if packed:
        runtime.register(options)
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": str(int(graph)), "use_tf32": "1"})
    types = {tensor.name: tensor.data_type for tensor in built.model.graph.initializer}
    as_value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
    values = [as_value(weight, types[name]) for name, weight in built.weights.items()]
    options.add_external_initializers(list(built.weights), values)
    return ort.InferenceSession(built.model.SerializeToString(), options, providers=[provider])


def bound_runner(session: ort.InferenceSession, layers: Layers) -> Callable[[], None]:
    """Return a function that enqueues one run for layers.M rows of X; where any are allowed, each has a CUDA graph."""
    dtype, element = getattr(torch, layers.dtype), ONNX_TYPE[layers.dtype]
    binding = session.io_binding()
    inputs = []
    for given in session.get_inputs():
        inputs.append(torch.randn(layers.M, layers.features or layers.K, device="cuda").to(dtype))
        binding.bind_input(given.name, "cuda", 0, element, list(inputs[-1].shape), inputs[-1].data_ptr())
    outputs = []
    for output in session.get_outputs():
        outputs.append(torch.empty(layers.M, layers.N, device="cuda", dtype=dtype))
        binding.bind_output(output.name, "cuda", 0, element, list(outputs[-1].shape), outputs[-1].data_ptr())
    run_options = ort.RunOptions()
    run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    if layers.any_rows:
        run_options.add_run_config_entry("gpu_graph_id", str(layers.M))

    def run(keep: object = (inputs, outputs)) -> None:
        session.run_with_iobinding(binding, run_options)

    return run


def _model(
    layers: Layers, nodes: list[onnx.NodeProto], initializers: list[TensorProto], features: int
) -> onnx.ModelProto:
    element = ONNX_TYPE[layers.dtype]
    rows = "M" if layers.any_rows else layers.M
    ends = [layers.nodes - 1] if layers.chained else range(layers.nodes)
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info(f"X{i}", element, [rows, features]) for i in range(layers.repeats)],
        [helper.make_tensor_value_info(f"Y{i}", element, [rows, layers.N]) for i in ends],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _placeholder(name: str, element: int, weight: np.ndarray) -> TensorProto:
    """An initializer whose values a session is given apart."""
    tensor = TensorProto(name=name, data_type=element, dims=weight.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="given to the session")
    return tensor


def _cast(values: np.ndarray, element: int) -> np.ndarray:
    """float32 values as `element`; bfloat16 as its bits."""
    if element == TensorProto.BFLOAT16:
        return round_to_bfloat16(values)
    return values.astype(np.float16) if element == TensorProto.FLOAT16 else values
