"""Reading and writing ONNX files: every failure is one sentence, and a failed write leaves the old file in place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from deftonnx.errors import DeftError, UnsupportedError, UsageError
from deftonnx.model import Model, is_apart, move, raw_bytes, read_apart, serialised

Parsed = TypeVar("Parsed")

PROTOBUF_LIMIT = (1 << 31) - (1 << 26)
"""Bytes of weights above which a model no longer fits in one file, the rest of the model taken into account."""
WEIGHT_LIMIT = (1 << 31) - (1 << 12)
"""Bytes of one weight, with its name, that a protobuf message holds."""
ALIGNMENT = 4096
"""External weights start at multiples of this, so that they can be mapped into memory."""
SMALL = 1024
"""Weights of fewer bytes stay in the model file, where shape inference can read them."""


def load(path: str | Path) -> Model:
    """The model in a file, with its external data, large weights apart."""
    loaded = _parsed(Path(path), read_apart)
    check(loaded.shell, f"'{path}'")
    _load_external(loaded, Path(path))
    return loaded


def read(path: str | Path) -> onnx.ModelProto:
    """The model in a file; weights that it keeps in other files stay there."""
    read = _parsed(Path(path), lambda file: onnx.load(str(file), format="protobuf", load_external_data=False))
    check(read, f"'{path}'")
    return read


def _parsed(file: Path, parse: Callable[[Path], Parsed]) -> Parsed:
    if not file.exists():
        raise UsageError(f"model '{file}' does not exist")
    if not file.is_file():
        raise UsageError(f"model '{file}' is not a file")
    try:
        return parse(file)
    except (DecodeError, ValueError) as error:
        raise UnsupportedError(f"'{file}' is not an ONNX model, or is truncated") from error
    except OSError as error:
        raise UsageError(f"model '{file}' cannot be read: {error.strerror}") from error


def _load_external(loaded: Model, file: Path) -> None:
    """Read weights kept in other files; a file that is missing, out of bounds or too short is named."""
    for tensor in loaded.shell.graph.initializer:
        if _is_elsewhere(tensor, loaded):
            content = _external(tensor, file)
            if not move(tensor, content, loaded.weights):
                tensor.raw_data = content
    for tensor in external_data_helper._get_all_tensors(loaded.shell):
        if _is_elsewhere(tensor, loaded):
            tensor.raw_data = _external(tensor, file)


def _is_elsewhere(tensor: onnx.TensorProto, loaded: Model) -> bool:
    """True for a weight in another file, which the model does not hold yet."""
    here = is_apart(tensor) and tensor.name in loaded.weights
    return external_data_helper.uses_external_data(tensor) and not here


def _external(tensor: onnx.TensorProto, file: Path) -> bytes:
    """The values of `tensor` from the file it refers to; it no longer does."""
    location = external_data_helper.ExternalDataInfo(tensor).location
    what = f"'{file}' keeps weight '{tensor.name}' in external data"
    if not (file.parent / location).is_file():
        raise UnsupportedError(f"{what}, and '{location}' is missing")
    try:
        content = external_data_helper._read_external_data_bytes(tensor, str(file.parent))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedError(f"{what}, and '{location}' cannot be read: {reason}") from error
    if len(content) < (need := _bytes(tensor)):
        raise UnsupportedError(f"{what}, and '{location}' is truncated")
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")
    return content[:need] if need else content  # without a length, the rest of the file was read


def _bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that a tensor of this type and shape needs at least."""
    count = 1
    for d in tensor.dims:
        count *= d
    try:
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):
        return 0
    return count * size if size > 1 else 0  # types below one byte are packed


def check(model: onnx.ModelProto, origin: str) -> None:
    """Refuse what is no model, or is newer than the installed onnx package."""
    if not model.HasField("graph") or not model.opset_import:
        raise UnsupportedError(f"{origin} is not an ONNX model, or is truncated")
    if any(isinstance(text, bytes) for text in _texts(model)):  # protobuf's way to say that it is not UTF-8
        raise UnsupportedError(f"{origin} is damaged: it holds names that are not UTF-8")
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not 7 <= opset.version <= newest:
            raise UnsupportedError(f"{origin} uses opset {opset.version}; opsets 7 to {newest} are supported")

    for tensor in _initializers(model.graph):
        if (damage := _damage(tensor)) is not None:
            raise UnsupportedError(f"{origin} is damaged: weight '{tensor.name}' {damage}")


def _damage(tensor: onnx.TensorProto) -> str | None:
    """What of a weight does not fit together."""
    if tensor.data_type not in onnx.TensorProto.DataType.values():
        return f"has type {tensor.data_type}, which does not exist"
    if any(d < 0 for d in tensor.dims):
        return f"has the shape {list(tensor.dims)}"
    have, need = len(tensor.raw_data), _bytes(tensor)
    if tensor.HasField("raw_data") and need and have != need:
        return f"has {have} bytes, but its shape {list(tensor.dims)} needs {need}"
    return None


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    """The names in a model."""
    yield from (model.producer_name, model.producer_version, model.domain, model.doc_string)
    for graph in bodies(model.graph):
        yield graph.name
        for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            yield item.name
        for node in graph.node:
            yield from (node.op_type, node.domain, *node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)


def save(model: Model, path: str | Path, external_data: bool = False, source: Path | None = None) -> None:
    """Write atomically. Weights go to a file beside it when asked, or when the model is too large for one file."""
    file = Path(path)
    old = data_files(file)
    if external_data or too_large(model):
        old -= _save_external(model, file, old)
    else:
        write_atomically(file, lambda temporary: _write(model, temporary))
    read = set() if source is None else {(source.parent / name).resolve() for name in data_files(source)}
    for name in old:
        if (file.parent / name).resolve() in read:
            continue  # `source` is a copy of what `file` was
        if re.fullmatch(re.escape(file.name) + r"\.[0-9a-f]{12}\.data", name):
            (file.parent / name).unlink(missing_ok=True)


def _write(model: Model, file: Path) -> None:
    with open(file, "wb") as handle:
        handle.writelines(serialised(model))


def check_sizes(model: Model, origin: str) -> None:
    """Refuse a weight that no protobuf message can hold."""
    for tensor in _initializers(model.shell.graph):
        if (size := len(_content(tensor, model))) > WEIGHT_LIMIT:
            raise UnsupportedError(
                f"{origin} cannot be optimised: its weight '{tensor.name}' alone has {size / 1e9:.1f} GB"
            )


def weight_bytes(model: Model) -> int:
    """Bytes of a model's weights."""
    return sum(len(_content(tensor, model)) for tensor in _initializers(model.shell.graph))


def _content(tensor: onnx.TensorProto, model: Model) -> bytes | memoryview:
    return raw_bytes(model.weights[tensor.name]) if is_apart(tensor) else tensor.raw_data


def too_large(model: Model) -> bool:
    """True where the weights leave no room in one protobuf message."""
    return weight_bytes(model) > PROTOBUF_LIMIT


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies of its If, Loop and Scan."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from bodies(inner)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The weights of a graph and of the bodies inside it."""
    for inner in bodies(graph):
        yield from inner.initializer


def constants(model: Model) -> Iterator[onnx.TensorProto]:
    """The weights of a model, those that an exporter wrote as Constant nodes included."""
    for graph in bodies(model.shell.graph):
        yield from graph.initializer
        for node in graph.node:
            if node.op_type == "Constant":
                yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _save_external(model: Model, file: Path, old: set[str]) -> set[str]:
    """The data file is named by its content, so that the old model and the old data stay a pair until the end."""
    digest = hashlib.sha256()
    for tensor in _initializers(model.shell.graph):
        digest.update(_content(tensor, model))
    data = file.with_name(f"{file.name}.{digest.hexdigest()[:12]}.data")
    shell = onnx.ModelProto()
    shell.CopyFrom(model.shell)
    try:
        write_atomically(data, lambda temporary: _move_weights(Model(shell, model.weights), temporary, data.name))
        content = shell.SerializeToString(deterministic=True)
        write_atomically(file, lambda temporary: temporary.write_bytes(content))
    except BaseException:
        if data.name not in old:
            data.unlink(missing_ok=True)
        raise
    return {data.name}


def _move_weights(model: Model, data: Path, location: str) -> None:
    """Write the weights of `model` to the file `data` and leave references to `location` in their place."""
    with open(data, "wb") as handle:
        for tensor in _initializers(model.shell.graph):
            content = _content(tensor, model)
            length = len(content)
            if length < SMALL:
                continue
            handle.write(bytes(-handle.tell() % ALIGNMENT))
            offset = handle.tell()
            handle.write(content)
            tensor.ClearField("raw_data")
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))


def data_files(file: Path) -> set[str]:
    """The files beside a model that it keeps its weights in; none where there is no readable model."""
    try:
        shell = read_apart(file, values=False).shell
    except Exception:  # an unreadable old output is simply replaced, an input refused
        return set()
    tensors = (t for t in external_data_helper._get_all_tensors(shell) if not is_apart(t))
    return {
        external_data_helper.ExternalDataInfo(t).location for t in tensors if external_data_helper.uses_external_data(t)
    }


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then move it into place."""
    with staged(file, write) as move:
        move()


@contextlib.contextmanager
def staged(file: Path, write: Callable[[Path], object]) -> Iterator[Callable[[], None]]:
    """Let `write` fill a temporary file in the same folder; what this gives moves it into place."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with _one_sentence(file):
            write(temporary)
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())

        def move() -> None:
            with _one_sentence(file):
                os.replace(temporary, file)

        yield move
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_sentence(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeftError(f"cannot write '{file}': {error.strerror or error}; nothing was changed") from error


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically."""
    with staged_text(file, text) as move:
        move()


def staged_text(file: Path, text: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """`staged` for a text."""
    return staged(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def check_writable(path: str | Path, force: bool) -> None:
    """Refuse an output that exists (without `force`), is no file, or lies in a folder that cannot be written to."""
    file = Path(path)
    if file.is_dir():
        raise UsageError(f"output '{file}' is a folder")
    if file.exists() and not file.is_file():
        raise UsageError(f"output '{file}' is a device or the like, not a file")
    if file.exists() and not force:
        raise UsageError(f"output '{file}' exists; pass --force to overwrite it")
    if not file.parent.is_dir():
        raise UsageError(f"output '{file}': the folder '{file.parent}' does not exist")
    if not os.access(file.parent, os.W_OK):
        raise UsageError(f"output '{file}': the folder '{file.parent}' cannot be written to")
