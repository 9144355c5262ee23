"""Reading and writing ONNX files: every failure is one sentence, and a failed write leaves the old file in place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from deftonnx.errors import DeftError, UnsupportedError, UsageError

PROTOBUF_LIMIT = (1 << 31) - (1 << 20)


def load(path: str | Path) -> onnx.ModelProto:
    """The model in a file, with its external data."""
    file = Path(path)
    if not file.exists():
        raise UsageError(f"model '{file}' does not exist")
    if not file.is_file():
        raise UsageError(f"model '{file}' is not a file")
    try:
        model = onnx.load(str(file), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise UnsupportedError(f"'{file}' is not an ONNX model, or is truncated") from error
    except OSError as error:
        raise UsageError(f"model '{file}' cannot be read: {error.strerror}") from error
    check(model, f"'{file}'")
    try:
        external_data_helper.load_external_data_for_model(model, str(file.parent))
    except Exception as error:
        missing = [t for t in external_tensors(model) if not (file.parent / t).is_file()]
        what = f"'{missing[0]}' is missing" if missing else str(error).splitlines()[0]
        raise UnsupportedError(f"'{file}' keeps weights in external data, and {what}") from error
    return model


def check(model: onnx.ModelProto, origin: str) -> None:
    """Refuse what is no model, or is newer than the installed onnx package."""
    if not model.HasField("graph") or not model.opset_import:
        raise UnsupportedError(f"{origin} is not an ONNX model, or is truncated")
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not 7 <= opset.version <= newest:
            raise UnsupportedError(f"{origin} uses opset {opset.version}; opsets 7 to {newest} are supported")


def external_tensors(model: onnx.ModelProto) -> set[str]:
    """The files that a model keeps weights in."""
    return {
        entry.value
        for tensor in external_data_helper._get_all_tensors(model)
        if external_data_helper.uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def save(model: onnx.ModelProto, path: str | Path, external_data: bool = False) -> None:
    """Write atomically. Weights go to a file beside it when asked, or when the model is too large for one file."""
    file = Path(path)
    if external_data or model.ByteSize() > PROTOBUF_LIMIT:
        _save_external(model, file)
    else:
        write_atomically(
            file, lambda temporary: temporary.write_bytes(model.SerializeToString(deterministic=True))
        )


def _save_external(model: onnx.ModelProto, file: Path) -> None:
    """The data file is named by its content, so that the old model and the old data stay a pair until the end."""
    old = external_tensors(_peek(file)) if file.is_file() else set()
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(tensor.raw_data)
    location = f"{file.name}.{digest.hexdigest()[:12]}.data"
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    external_data_helper.convert_model_to_external_data(copy, location=location, size_threshold=1024)
    try:
        external_data_helper.write_external_data_tensors(copy, str(file.parent))
        write_atomically(
            file, lambda temporary: temporary.write_bytes(copy.SerializeToString(deterministic=True))
        )
    except OSError as error:
        if location not in old:
            (file.parent / location).unlink(missing_ok=True)
        raise _write_error(file, error) from error
    for name in old - {location}:
        if name.startswith(f"{file.name}.") and name.endswith(".data"):
            (file.parent / name).unlink(missing_ok=True)


def _peek(file: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(file), load_external_data=False)
    except Exception:  # an unreadable old output is simply replaced
        return onnx.ModelProto()


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then move it into place."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise _write_error(file, error) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass


def _write_error(file: Path, error: OSError) -> DeftError:
    return DeftError(f"cannot write '{file}': {error.strerror or error}; nothing was changed")


def check_writable(path: str | Path, force: bool) -> None:
    """Refuse an output that exists (without `force`), is a folder, or lies in a folder that cannot be written to."""
    file = Path(path)
    if file.is_dir():
        raise UsageError(f"output '{file}' is a folder")
    if file.exists() and not force:
        raise UsageError(f"output '{file}' exists; pass --force to overwrite it")
    if not file.parent.is_dir():
        raise UsageError(f"output '{file}': the folder '{file.parent}' does not exist")
    if not os.access(file.parent, os.W_OK):
        raise UsageError(f"output '{file}': the folder '{file.parent}' cannot be written to")
