"""Calibration and evaluation data in every form users have it, read into batches of named arrays."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.errors import DeftError, UsageError

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
LABELS = "labels"


@dataclass
class Dataset:
    """Feeds of a model in order, each a dict of arrays, and labels (samples,) where the data has them."""

    feeds: list[Feed]
    labels: Array | None = None
    origin: str = "the calibration data"
    stacked: bool = field(default=True)
    """True where samples lie along the first axis, so that feeds may be cut and joined."""

    @property
    def samples(self) -> int:
        """Samples in all feeds."""
        return sum(_samples(feed) if self.stacked else 1 for feed in self.feeds)


def read(source: Any, inputs: list[gs.Variable], what: str = "the calibration data") -> Dataset:
    """Data from a path (.npz, .npy, a directory of .npz, script.py[:function]), an ONNX Runtime
    CalibrationDataReader, a dict of arrays, an array (one input), or any iterable of feed dicts.

    Every feed is checked against the model's `inputs`: names, types, shapes, finite values.
    """
    origin, feeds, labels, stacked = what, [], None, True
    if isinstance(source, (str, Path)):
        origin = f"'{source}'"
        feeds, labels, stacked = _read_path(str(source), inputs)
    elif isinstance(source, dict):
        feeds, labels = _split_labels(source)
    elif isinstance(source, np.ndarray):
        feeds = [_single(source, inputs, origin)]
    else:
        feeds, stacked = list(_iterate(source)), True
    feeds = [{name: np.asarray(value) for name, value in feed.items()} for feed in feeds]
    if not feeds:
        raise UsageError(f"{origin} holds no samples")
    for feed in feeds:
        _check(feed, inputs, origin)
    stacked = all(_can_stack(feed, inputs) for feed in feeds)
    dataset = Dataset(feeds, labels, origin, stacked)
    if dataset.samples == 0:
        raise UsageError(f"{origin} holds no samples")
    if labels is not None and len(labels) != dataset.samples:
        raise UsageError(f"{origin} holds {dataset.samples} samples but {len(labels)} labels")
    return dataset


def random_data(inputs: list[gs.Variable], samples: int, seed: int) -> Dataset:
    """Standard normal floats and zero integers: a last resort that knows nothing of the real inputs."""
    rng = np.random.default_rng(seed)
    feed = {}
    for t in inputs:
        if t.shape is None or any(not isinstance(d, int) for d in t.shape[1:]):
            raise UsageError(
                f"random calibration data needs fixed shapes, but input '{t.name}' has {t.shape}"
            )
        shape = (samples, *t.shape[1:])
        dtype = np.dtype(t.dtype)
        values = rng.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        feed[t.name] = values.astype(dtype)
    return Dataset([feed], None, "random data")


def batches(
    dataset: Dataset, inputs: list[gs.Variable], limit: int | None, seed: int, size: int
) -> list[Feed]:
    """`limit` samples picked with `seed`, in batches of `size`, or of the model's own batch where that is fixed."""
    if not dataset.stacked:
        return dataset.feeds[:limit]
    pick = np.arange(dataset.samples)
    if limit is not None and limit < len(pick):
        pick = np.sort(np.random.default_rng(seed).choice(len(pick), limit, replace=False))
    fixed = [t.shape[0] for t in inputs if t.shape and isinstance(t.shape[0], int) and t.shape[0] > 0]
    size = fixed[0] if fixed else size
    joined = _Joined(dataset.feeds)
    parts = [pick[i : i + size] for i in range(0, len(pick), size)]
    if fixed and len(parts[-1]) < size:
        parts = parts[:-1] or [np.resize(pick, size)]
    return [joined.take(part) for part in parts]


class _Joined:
    """Random access to samples across feeds without copying them all."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds
        self.ends = np.cumsum([_samples(feed) for feed in feeds])

    def take(self, index: Array) -> Feed:
        which = np.searchsorted(self.ends, index, side="right")
        start = np.concatenate([[0], self.ends[:-1]])
        parts = [(self.feeds[w], index[which == w] - start[w]) for w in np.unique(which)]
        return {name: np.concatenate([feed[name][i] for feed, i in parts]) for name in self.feeds[0]}


def _samples(feed: Feed) -> int:
    return min(len(value) for value in feed.values())


def _read_path(path: str, inputs: list[gs.Variable]) -> tuple[list[Feed], Array | None, bool]:
    name, _, function = path.partition(".py:")
    if function or path.endswith(".py"):
        return list(_run_script(path if not function else f"{name}.py", function or None)), None, True
    file = Path(path)
    if not file.exists():
        raise UsageError(f"calibration data '{path}' does not exist")
    if file.is_dir():
        parts = [_load_npz(part) for part in sorted(file.glob("*.npz"))]
        labels = [label for _, label in parts if label is not None]
        feeds = [feed for feeds, _ in parts for feed in feeds]
        return feeds, np.concatenate(labels) if labels and len(labels) == len(parts) else None, True
    if file.suffix == ".npy":
        return [_single(_load(file), inputs, f"'{path}'")], None, True
    if file.suffix == ".npz":
        return (*_load_npz(file), True)
    raise UsageError(f"'{path}' is none of .npz, .npy, a directory of .npz files, or script.py[:function]")


def _load(file: Path) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except Exception as error:
        raise UsageError(f"'{file}' is not a readable {file.suffix} file") from error


def _load_npz(file: Path) -> tuple[list[Feed], Array | None]:
    loaded = _load(file)
    try:
        arrays = {name: loaded[name] for name in loaded.files}
    except Exception as error:
        raise UsageError(f"'{file}' is not a readable .npz file") from error
    return _split_labels(arrays)


def _split_labels(arrays: dict[str, Any]) -> tuple[list[Feed], Array | None]:
    labels = arrays.get(LABELS)
    feed = {name: np.asarray(value) for name, value in arrays.items() if name != LABELS}
    return ([feed] if feed else []), None if labels is None else np.asarray(labels).reshape(-1)


def _single(array: Array, inputs: list[gs.Variable], origin: str) -> Feed:
    if len(inputs) != 1:
        names = ", ".join(f"'{t.name}'" for t in inputs)
        raise UsageError(f"{origin} is one array but the model has {len(inputs)} inputs: {names}")
    return {inputs[0].name: array}


def _run_script(path: str, function: str | None) -> Iterator[Feed]:
    file = Path(path)
    if not file.exists():
        raise UsageError(f"calibration script '{path}' does not exist")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        produce = getattr(module, function or "calibration_data", None)
        if produce is None:
            raise UsageError(f"'{path}' has no function '{function or 'calibration_data'}'")
        yield from _iterate(produce())
    except DeftError:
        raise
    except Exception as error:
        raise UsageError(f"'{path}' failed: {type(error).__name__}: {error}") from error


def _iterate(source: Any) -> Iterator[Feed]:
    if hasattr(source, "get_next"):  # onnxruntime.quantization.CalibrationDataReader
        while (feed := source.get_next()) is not None:
            yield feed
        return
    if not isinstance(source, Iterable):
        raise UsageError(f"calibration data of type {type(source).__name__} is not an iterable of feed dicts")
    for feed in source:
        if not isinstance(feed, dict):
            raise UsageError(
                f"calibration data yields {type(feed).__name__}, not a dict of input name to array"
            )
        yield feed


def _check(feed: Feed, inputs: list[gs.Variable], origin: str) -> None:
    wanted = {t.name: t for t in inputs}
    for name in feed:
        if name not in wanted:
            names = ", ".join(f"'{n}'" for n in wanted)
            raise UsageError(f"{origin} has an array '{name}', but the model's inputs are {names}")
    for name, t in wanted.items():
        if name not in feed:
            raise UsageError(f"{origin} has no array for the model's input '{name}'")
        value = feed[name]
        if t.dtype is not None and value.dtype != t.dtype:
            raise UsageError(
                f"{origin}: '{name}' has type {value.dtype}, but the model wants {np.dtype(t.dtype)}"
            )
        if t.shape is not None:
            fits = value.ndim == len(t.shape) and all(
                not isinstance(d, int) or d <= 0 or d == s
                for d, s in zip(t.shape[1:], value.shape[1:], strict=True)
            )
            if not fits:
                raise UsageError(
                    f"{origin}: '{name}' has shape {list(value.shape)}, but the model wants {t.shape}"
                )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UsageError(f"{origin}: '{name}' holds NaN or infinite values")


def _can_stack(feed: Feed, inputs: list[gs.Variable]) -> bool:
    """True where every input has samples along its first axis."""
    lengths = {len(feed[t.name]) if feed[t.name].ndim else -1 for t in inputs}
    return len(lengths) == 1 and -1 not in lengths
