"""Random inputs of a model's shapes and types, for measuring how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

from deftonnx.errors import UsageError

Array = np.ndarray[Any, Any]

_FLOATS: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.DOUBLE: np.float64,
}
_INTEGERS: dict[int, Any] = {
    TensorProto.INT64: np.int64,
    TensorProto.INT32: np.int32,
    TensorProto.INT16: np.int16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT64: np.uint64,
    TensorProto.UINT32: np.uint32,
    TensorProto.UINT16: np.uint16,
    TensorProto.UINT8: np.uint8,
}


def made_up_inputs(
    model: onnx.ModelProto, name: str, batch: int | None, sizes: Mapping[str, int], seed: int = 0
) -> dict[str, Array]:
    """One feed for `model`: normal random numbers for float inputs, valid row numbers for inputs that pick rows of a
    table, ones for other integers and booleans.

    The first axis has length `batch` where the model leaves it free (1 if `batch` is None), other free axes the length
    that `sizes` gives for their name. `name` is the model's, for messages. Raises UsageError if a length is not known,
    a fixed first axis is not `batch`, or a type has no random values.
    """
    rng = np.random.default_rng(seed)
    weights = {t.name for t in model.graph.initializer}
    feed = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        what = f"input '{value.name}' of '{name}'"
        if not value.type.HasField("tensor_type"):
            raise UsageError(f"{what} is not a tensor; only tensors have random values")
        shape = _shape(value, what, batch, sizes)
        feed[value.name] = _values(model, value, what, shape, rng)
    return feed


def _shape(value: onnx.ValueInfoProto, what: str, batch: int | None, sizes: Mapping[str, int]) -> tuple[int, ...]:
    shape = []
    for axis, d in enumerate(value.type.tensor_type.shape.dim):
        if d.HasField("dim_value") and d.dim_value >= 0:
            if axis == 0 and batch is not None and d.dim_value != batch:
                raise UsageError(f"{what} has a fixed first axis of {d.dim_value}: --batch {batch} cannot change it")
            shape.append(d.dim_value)
        elif d.dim_param in sizes:
            shape.append(sizes[d.dim_param])
        elif axis == 0:
            shape.append(batch or 1)
        else:
            hint = f"--dim {d.dim_param}=LENGTH" if d.dim_param else "--inputs FILE.npz"
            raise UsageError(f"{what} leaves the length of axis {axis} open: give {hint}")
    return tuple(shape)


def _values(
    model: onnx.ModelProto, value: onnx.ValueInfoProto, what: str, shape: tuple[int, ...], rng: np.random.Generator
) -> Array:
    element = value.type.tensor_type.elem_type
    if element in _FLOATS:
        numbers = rng.standard_normal(shape).astype(np.float32)
        return np.where(numbers == 0, np.float32(1), numbers).astype(_FLOATS[element])
    if element in _INTEGERS:
        rows = rows_picked(model, value.name)
        return (rng.integers(1, rows, shape) if rows > 2 else np.ones(shape)).astype(_INTEGERS[element])
    if element == TensorProto.BOOL:
        return np.ones(shape, np.bool_)
    raise UsageError(f"{what} is of type {TensorProto.DataType.Name(element).lower()}: give --inputs FILE.npz")


def rows_picked(model: onnx.ModelProto, name: str) -> int:
    """Rows of the smallest table that a Gather picks from by the input `name`, 0 if there is none."""
    tables = {t.name: t.dims for t in model.graph.initializer if len(t.dims) > 0}
    casts = [n for n in model.graph.node if n.op_type in ("Cast", "Identity") and n.input[0] == name]
    names = {name, *(n.output[0] for n in casts)}
    picks = [n for n in model.graph.node if n.op_type == "Gather" and n.input[1] in names]
    return min((tables[n.input[0]][_axis(n)] for n in picks if n.input[0] in tables), default=0)


def _axis(gather: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in gather.attribute if attribute.name == "axis"), 0)
