"""Sessions on the CPU, quiet, of models whose large weights are beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

from deftonnx.model import Array, Model, is_apart
from deftonnx.overloads import loadable

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_PROVIDERS = ["CPUExecutionProvider"]


def session_options() -> ort.SessionOptions:
    """Options of a session on the CPU: quiet, with as many threads as OMP_NUM_THREADS says, where it is set."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        options.intra_op_num_threads = int(threads)
    return options


def lasting(model: Model) -> ort.InferenceSession:
    """A session for many runs: it copies the weights, and orders them for its kernels."""
    options = session_options()
    graph = model.shell.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    # it takes the values only of what the graph itself reads: those of others, which bodies may read, stay inside
    inside = {name: array for name, array in model.weights.items() if name not in read}
    shell = Model(model.shell, inside).whole() if inside else model.shell
    weights = {name: ort_value(array) for name, array in model.weights.items() if name in read}
    options.add_external_initializers(list(weights), list(weights.values()))
    # without enable_fallback=0 it prints what it raises
    content = loadable(shell).SerializeToString()
    disabled = _disabled(shell)
    return ort.InferenceSession(content, options, providers=_PROVIDERS, disabled_optimizers=disabled, enable_fallback=0)


class Passing(ort.InferenceSession):
    """A session for a few runs: the weights are handed to each, so that it is soon made and copies none of them.

    observing: the model has outputs all over; nodes run as soon as they can, so that what these are computed from need
    not stay until the end.
    """

    def __init__(self, model: Model, *, observing: bool = False) -> None:
        self._weights = {name: ort_value(array) for name, array in model.weights.items()}
        shell = _with_inputs(loadable(model.shell), self._weights.keys())
        options = session_options()
        options.enable_mem_pattern = False  # from a second run on, all activations would have places of their own
        if observing:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        content, disabled = shell.SerializeToString(), _disabled(model.shell)
        super().__init__(content, options, providers=_PROVIDERS, disabled_optimizers=disabled, enable_fallback=0)

    def get_inputs(self) -> list[ort.NodeArg]:
        """The inputs but for the weights."""
        return [value for value in super().get_inputs() if value.name not in self._weights]

    def run(self, output_names: Sequence[str] | None, input_feed: dict[str, Any], run_options: Any = None) -> Any:
        """As InferenceSession.run."""
        return super().run(output_names, {**input_feed, **self._weights}, run_options)

    def run_with_ort_values(
        self, output_names: Sequence[str], input_dict_ort_values: dict[str, ort.OrtValue], run_options: Any = None
    ) -> list[ort.OrtValue]:
        """As InferenceSession.run_with_ort_values."""
        return list(super().run_with_ort_values(output_names, {**input_dict_ort_values, **self._weights}, run_options))


def _disabled(shell: onnx.ModelProto) -> list[str]:
    """Optimisations of ONNX Runtime that a session must do without.

    Of models in float16, version 1.31 makes one product of a Transpose, a Cast and a MatMul, and ends the process where
    the size of the first axis is free.
    """
    values = (*shell.graph.input, *shell.graph.output)
    kinds = {t.data_type for t in shell.graph.initializer} | {v.type.tensor_type.elem_type for v in values}
    return ["MatmulTransposeFusion"] if onnx.TensorProto.FLOAT16 in kinds else []


def _with_inputs(shell: onnx.ModelProto, names: Any) -> onnx.ModelProto:
    """`shell` with inputs in the place of the weights of these names."""
    result = onnx.ModelProto()
    result.CopyFrom(shell)
    graph = result.graph
    apart = [tensor for tensor in shell.graph.initializer if is_apart(tensor) and tensor.name in names]
    moved = {tensor.name for tensor in apart}
    for field, kept in (
        (graph.initializer, [t for t in shell.graph.initializer if t.name not in moved]),
        (graph.input, [t for t in shell.graph.input if t.name not in moved]),
    ):
        del field[:]
        field.extend(kept)
    graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in apart)
    return result


def ort_value(array: Array) -> ort.OrtValue:
    """An array as ONNX Runtime takes it, in the same memory."""
    if array.dtype == BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, onnx.TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
