"""A model in two parts: a message without its large weights, the shell, and these as arrays.

Weights in a message are copied whenever it is made, serialised or given to a session, and Python's protobuf hands all
freed memory back to the system whenever a large message goes. So they are read from the file into arrays, stay arrays
while the model is rewritten, and are written from these: `read_apart` and `serialised` know that much of protobuf's
wire format (https://protobuf.dev/programming-guides/encoding): a message is fields of a number, a kind and a content.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

Array = np.ndarray[Any, Any]

LARGE = 4096
"""Weights of more bytes are arrays; smaller ones stay in the shell, where shape inference and sessions read them."""
_PLAIN = "FLOAT DOUBLE FLOAT16 BFLOAT16 INT8 UINT8 INT16 UINT16 INT32 UINT32 INT64 UINT64"
_TYPES = {
    kind: onnx.helper.tensor_dtype_to_np_dtype(kind) for kind in map(onnx.TensorProto.DataType.Value, _PLAIN.split())
}
"""Types that an array holds as a message does: byte by byte."""
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Field numbers in ModelProto, GraphProto and TensorProto, onnx.proto."""
_PLACE = "an array beside this message"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass
class Model:
    """A model whose large weights are apart from the message that holds the rest of it."""

    shell: onnx.ModelProto
    """In the place of each large weight is a tensor of its name, type and shape, marked external."""
    weights: dict[str, Array] = field(default_factory=dict)

    def whole(self) -> onnx.ModelProto:
        """The model as one message."""
        model = onnx.ModelProto()
        model.CopyFrom(self.shell)
        for tensor in model.graph.initializer:
            if is_apart(tensor) and tensor.name in self.weights:
                _clear_reference(tensor)
                tensor.raw_data = raw_bytes(self.weights[tensor.name]).tobytes()
        return model


def apart(model: onnx.ModelProto | Model) -> Model:
    """`model` with its large weights as arrays; the message is left alone."""
    if isinstance(model, Model):
        return model
    result = Model(onnx.ModelProto())
    for message, copy in ((model, result.shell), (model.graph, result.shell.graph)):
        for descriptor, value in message.ListFields():
            if descriptor.name == "initializer":
                copy.initializer.extend(_moved(tensor, result.weights) for tensor in value)
            elif descriptor.name != "graph":
                _assign(copy, descriptor.name, value)
    return result


def _assign(message: Any, name: str, value: Any) -> None:
    if hasattr(value, "extend"):
        getattr(message, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)


def _moved(tensor: onnx.TensorProto, weights: dict[str, Array]) -> onnx.TensorProto:
    if len(tensor.raw_data) <= LARGE:
        return tensor
    result, content = onnx.TensorProto(), b""
    for descriptor, value in tensor.ListFields():
        if descriptor.name == "raw_data":
            content = value
        else:
            _assign(result, descriptor.name, value)
    return result if move(result, content, weights) else tensor


def move(tensor: onnx.TensorProto, content: bytes, weights: dict[str, Array]) -> bool:
    """Give `tensor`, which is otherwise complete, its values: those of a large weight go to `weights`, and False is
    returned for another, which is left alone."""
    if len(content) <= LARGE or not _is_plain(tensor, len(content)) or tensor.name in weights:
        return False
    weights[tensor.name] = np.frombuffer(content, _TYPES[tensor.data_type]).reshape(tensor.dims)
    _refer(tensor)
    return True


def reference(name: str, array: Array) -> onnx.TensorProto:
    """What stands for a large weight in a shell."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
    _refer(tensor)
    return tensor


def _refer(tensor: onnx.TensorProto) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=_PLACE)


def is_large(array: Array) -> bool:
    """True for a weight that belongs beside a shell."""
    return array.nbytes > LARGE and array.dtype in _TYPES.values()


def is_apart(tensor: onnx.TensorProto) -> bool:
    """True for what stands for a large weight in a shell."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL and any(e.value == _PLACE for e in tensor.external_data)


def _is_plain(tensor: onnx.TensorProto, size: int) -> bool:
    """Whether `size` bytes are exactly the values of `tensor`, an array holds them as they are, and it has a name."""
    here = tensor.data_location == onnx.TensorProto.DEFAULT and not tensor.HasField("segment")
    if not tensor.name or not here or tensor.data_type not in _TYPES:
        return False
    return math.prod(tensor.dims) * _TYPES[tensor.data_type].itemsize == size


def _clear_reference(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")


def raw_bytes(array: Array) -> memoryview:
    """The bytes of an array, in the order of its elements."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read_apart(path: Path, *, values: bool = True) -> Model:
    """The model in a file, its large weights apart, or left out without `values`; weights that it keeps in other files
    stay there. Raises DecodeError for what is no model, and OSError."""
    if path.stat().st_size == 0:
        return Model(onnx.ModelProto())
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        weights: dict[str, Array] = {}
        shell = bytearray()
        for number, begin, content, end in _fields(data, 0, len(data)):
            if number == _GRAPH:
                shell += _field(_GRAPH, _read_graph(file if values else None, data, content, end, weights))
            else:
                shell += data[begin:end]
    return Model(onnx.ModelProto.FromString(bytes(shell)), weights)


def _read_graph(file: BufferedReader | None, data: mmap.mmap, begin: int, end: int, weights: dict[str, Array]) -> bytes:
    """A GraphProto's content without its large weights, which go into `weights`."""
    graph = bytearray()
    for number, start, content, stop in _fields(data, begin, end):
        moved = None
        if number == _INITIALIZER and stop - content > LARGE:
            moved = _read_tensor(file, data, content, stop, weights)
        graph += data[start:stop] if moved is None else _field(_INITIALIZER, moved.SerializeToString())
    return bytes(graph)


def _read_tensor(
    file: BufferedReader | None, data: mmap.mmap, begin: int, end: int, weights: dict[str, Array]
) -> onnx.TensorProto | None:
    """What stands for a tensor whose values go into `weights`; None for one that stays in the message."""
    rest, raw = bytearray(), None
    for number, start, content, stop in _fields(data, begin, end):
        if number == _RAW_DATA:
            raw = content, stop
        elif stop - start > LARGE:  # values in another field
            return None
        else:
            rest += data[start:stop]
    tensor = onnx.TensorProto.FromString(bytes(rest))
    if raw is None or raw[1] - raw[0] <= LARGE or not _is_plain(tensor, raw[1] - raw[0]) or tensor.name in weights:
        return None
    _refer(tensor)
    if file is None:
        return tensor
    array = np.empty(tuple(tensor.dims), _TYPES[tensor.data_type])
    file.seek(raw[0])  # read, not mapped: pages of the file would stay in memory beside the array
    file.readinto(raw_bytes(array))
    array.setflags(write=False)
    weights[tensor.name] = array
    return tensor


def serialised(model: Model) -> Iterator[bytes | memoryview]:
    """The model's message in pieces, the same as if it were serialised whole."""
    content = model.shell.SerializeToString(deterministic=True)
    for number, begin, start, end in _fields(content, 0, len(content)):
        if number != _GRAPH:
            yield content[begin:end]
            continue
        pieces = list(_graph_pieces(content, start, end, model.weights))
        yield _key(_GRAPH) + _varint(sum(map(len, pieces)))
        yield from pieces


def _graph_pieces(graph: bytes, begin: int, end: int, weights: dict[str, Array]) -> Iterator[bytes | memoryview]:
    for number, start, content, stop in _fields(graph, begin, end):
        tensor = onnx.TensorProto.FromString(graph[content:stop]) if number == _INITIALIZER else None
        if tensor is None or not is_apart(tensor) or tensor.name not in weights:
            yield graph[start:stop]
            continue
        _clear_reference(tensor)
        after = onnx.TensorProto(doc_string=tensor.doc_string) if tensor.doc_string else onnx.TensorProto()
        tensor.ClearField("doc_string")
        head, tail = tensor.SerializeToString(), after.SerializeToString()
        values = raw_bytes(weights[tensor.name])
        head += _key(_RAW_DATA) + _varint(len(values))
        yield _key(_INITIALIZER) + _varint(len(head) + len(values) + len(tail)) + head
        yield values
        yield tail


def byte_size(model: Model) -> int:
    """Bytes of the model's message."""
    return sum(map(len, serialised(model)))


def _fields(data: bytes | mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The number of each field of a message, where it begins, where its content begins, and where it ends."""
    at = begin
    while at < end:
        key, content = _read_varint(data, at, end)
        kind = key & 7
        if kind == _BYTES:
            length, content = _read_varint(data, content, end)
            stop = content + length
        elif kind == _VARINT:
            stop = _read_varint(data, content, end)[1]
        elif kind in (_FIXED64, _FIXED32):
            stop = content + (8 if kind == _FIXED64 else 4)
        else:
            raise DecodeError("a field of a kind that ONNX has not")
        if stop > end:
            raise DecodeError("a field that goes beyond its message")
        yield key >> 3, at, content, stop
        at = stop


def _read_varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number that takes 7 bits of each byte, the least significant first, and where it ends."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise DecodeError("a number that does not end")


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def _key(number: int) -> bytes:
    return _varint(number << 3 | _BYTES)


def _field(number: int, content: bytes) -> bytes:
    return _key(number) + _varint(len(content)) + content
