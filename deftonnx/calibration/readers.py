"""Calibration and evaluation data in every form users have it, read into batches of named arrays."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from deftonnx.errors import DeftError, UsageError

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
LABELS = "labels"
FUNCTION = "calibration_data"
"""The function of a script that is called where none is named."""


@dataclass
class Dataset:
    """Feeds of a model in order, each a dict of arrays, and labels (samples,) where the data has them."""

    feeds: list[Feed]
    labels: Array | None = None
    origin: str = "the calibration data"

    @property
    def samples(self) -> int:
        """Samples in all feeds; a feed whose inputs have no common first axis counts as one."""
        return sum(_samples(feed) for feed in self.feeds)

    @property
    def stacked(self) -> bool:
        """True where feeds may be cut and joined: samples lie along the first axis and are all of one shape."""
        shapes = {tuple((name, a.shape[1:]) for name, a in sorted(feed.items())) for feed in self.feeds}
        return len(shapes) == 1 and all(_has_sample_axis(feed) for feed in self.feeds)

    def labels_of(self, feeds: list[Feed]) -> Array | None:
        """The labels of batches of all samples. Where the model's batch is fixed they may be fewer, or samples may
        come twice (see `batches`)."""
        return None if self.labels is None else np.resize(self.labels, sum(_samples(feed) for feed in feeds))


def read(source: Any, inputs: list[gs.Variable], what: str = "the calibration data") -> Dataset:
    """Data from a path (.npz, .npy, a directory of .npz, script.py[:function]), an ONNX Runtime
    CalibrationDataReader, a dict of arrays, an array (one input), or any iterable of feed dicts.

    Every feed is checked against the model's `inputs`: names, types, shapes, finite values.
    """
    origin, labels = what, None
    if isinstance(source, (str, Path)):
        origin = f"{what.removeprefix('the ')} '{source}'"
        feeds, labels = _read_path(str(source), inputs, origin)
    elif isinstance(source, dict):
        feeds, labels = _split_labels(source, inputs)
    elif isinstance(source, np.ndarray):
        feeds = [_single(source, inputs, origin)]
    else:
        feeds = list(_iterate(source, origin))
    feeds = [{name: _array(name, value, origin) for name, value in feed.items()} for feed in feeds]
    for feed in feeds:
        _check(feed, inputs, origin)
    dataset = Dataset([feed for feed in feeds if _samples(feed)], labels, origin)
    if dataset.samples == 0:
        raise UsageError(f"{origin} holds no samples")
    if not dataset.stacked:
        for feed in dataset.feeds:
            _check_whole(feed, inputs, origin)
    if labels is not None:
        dataset.labels = _check_labels(labels, dataset.samples, origin)
    return dataset


def random_data(
    inputs: list[gs.Variable],
    samples: int,
    seed: int,
    rows: Mapping[str, int] | None = None,
    length: int | None = None,
) -> Dataset:
    """Standard normal floats, ones and, for inputs that pick rows of tables, row numbers: a last resort that knows
    nothing of the real inputs. `rows`: how many there are, by the name of the input. (A mask of zeros would hide all.)
    `length` is that of all free dimensions but the first; without it there must be none.

    Samples fill whole batches where the model fixes its batch. Inputs whose first dimensions are fixed to different
    numbers have no axis of samples: then every sample is a feed of its own.
    """
    first = {t.shape[0] for t in inputs if t.shape and isinstance(t.shape[0], int) and t.shape[0] > 0}
    rng = np.random.default_rng(seed)
    if len(first) > 1:
        feeds = [_random_feed(inputs, 1, rng, True, rows or {}, length) for _ in range(samples)]
        return Dataset(feeds, None, "random data")
    batch = next(iter(first), 1)
    feed = _random_feed(inputs, -(-samples // batch) * batch, rng, False, rows or {}, length)
    return Dataset([feed], None, "random data")


def has_free_lengths(inputs: list[gs.Variable]) -> bool:
    """Whether an input of known rank leaves a dimension but its first free."""
    return any(t.shape is not None and any(map(_is_free, t.shape[1:])) for t in inputs)


def values_in_sample(tensor: gs.Variable, length: int) -> int:
    """How many numbers a sample of an input has whose free dimensions are that long."""
    return math.prod(length if _is_free(size) else int(size) for size in (tensor.shape or [])[1:])


def places_in_sample(tensor: gs.Variable, length: int) -> int:
    """How many places, tokens or pixels, a sample of an input has whose free dimensions are that long."""
    return math.prod(length for size in (tensor.shape or [])[1:] if _is_free(size))


def is_of_integers(tensor: gs.Variable) -> bool:
    """Whether an input takes integers."""
    return not isinstance(tensor.dtype, int) and np.dtype(tensor.dtype).kind in "iu"


def _is_free(size: int | str | None) -> bool:
    return not isinstance(size, int) or size < 0


def _random_feed(
    inputs: list[gs.Variable],
    samples: int,
    rng: np.random.Generator,
    whole: bool,
    rows: Mapping[str, int],
    length: int | None,
) -> Feed:
    """`samples` rows of every input, or all of those of fixed length where a feed is a `whole`."""
    feed = {}
    for t in inputs:
        if t.shape is None or (length is None and any(map(_is_free, t.shape[1:]))):
            raise UsageError(f"random calibration data needs fixed shapes, but input '{t.name}' has {t.shape}")
        if t.dtype is None or _array_type(t).kind not in "fiub":
            raise UsageError(f"random calibration data cannot be made for input '{t.name}', which holds no numbers")
        fixed = whole and t.shape and isinstance(t.shape[0], int)
        others = [length if _is_free(size) else size for size in t.shape[1:]]
        shape: tuple[Any, ...] = (t.shape[0] if fixed else samples, *others) if t.shape else ()
        dtype = _array_type(t)
        if dtype.kind == "f":
            values = np.asarray(rng.standard_normal(shape))
        else:
            most = rows.get(t.name, 2)
            values = np.asarray(rng.integers(min(1, most - 1), most, shape))
        feed[t.name] = values.astype(dtype)
    return feed


def batches(dataset: Dataset, inputs: list[gs.Variable], limit: int | None, seed: int, size: int) -> list[Feed]:
    """`limit` samples picked with `seed`, in batches of `size`, or of the model's own batch where that is fixed.

    Of data that cannot be cut, whole feeds are picked. Samples that do not fill a fixed batch are left out, or
    repeated where there is only one batch.
    """
    stacked = dataset.stacked
    pick = np.arange(dataset.samples if stacked else len(dataset.feeds))
    if limit is not None and limit < len(pick):
        pick = np.sort(np.random.default_rng(seed).choice(len(pick), limit, replace=False))
    if not stacked:
        return [dataset.feeds[i] for i in pick]
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


def _has_sample_axis(feed: Feed) -> bool:
    return len({len(value) if value.ndim else -1 for value in feed.values()} - {-1}) == 1 and all(
        value.ndim for value in feed.values()
    )


def _samples(feed: Feed) -> int:
    return len(next(iter(feed.values()))) if _has_sample_axis(feed) else 1


def _read_path(path: str, inputs: list[gs.Variable], origin: str) -> tuple[list[Feed], Array | None]:
    stem, marker, function = path.partition(".py:")
    if marker or path.endswith(".py"):
        return _run_script(Path(f"{stem}.py" if marker else path), function or FUNCTION, origin), None
    file = Path(path)
    if not file.exists():
        raise UsageError(f"{origin} does not exist")
    if file.is_dir():
        files = sorted(file.glob("*.npz"))
        if not files:
            raise UsageError(f"{origin} is a folder without .npz files")
        parts = [_load_npz(part, inputs) for part in files]
        labels = [label for _, label in parts if label is not None]
        feeds = [feed for feeds, _ in parts for feed in feeds]
        return feeds, np.concatenate(labels) if len(labels) == len(parts) else None
    if file.suffix == ".npy":
        return [_single(_load(file, lambda loaded: loaded), inputs, origin)], None
    if file.suffix == ".npz":
        return _load_npz(file, inputs)
    raise UsageError(f"{origin} is none of .npz, .npy, a directory of .npz files, or script.py[:function]")


def _load(file: Path, extract: Any) -> Any:
    """What `extract` takes from a NumPy file, which is never unpickled: that would run code from the data."""
    try:
        with contextlib.closing(open(file, "rb")) as handle:
            return extract(np.load(handle, allow_pickle=False))
    except Exception as error:
        pickled = "Object arrays" in str(error) or "allow_pickle" in str(error)
        reason = "holds Python objects, not numbers" if pickled else "is damaged, or is no such file"
        raise UsageError(f"'{file}' cannot be read as {file.suffix}: it {reason}") from error


def _load_npz(file: Path, inputs: list[gs.Variable]) -> tuple[list[Feed], Array | None]:
    return _split_labels(_load(file, lambda loaded: {name: loaded[name] for name in loaded.files}), inputs)


def _split_labels(arrays: dict[str, Any], inputs: list[gs.Variable]) -> tuple[list[Feed], Array | None]:
    """`labels` apart from the feed, unless the model has an input of that name."""
    if any(t.name == LABELS for t in inputs):
        return [arrays], None
    feed = {name: np.asarray(value) for name, value in arrays.items() if name != LABELS}
    labels = arrays.get(LABELS)
    return ([feed] if feed else []), None if labels is None else np.asarray(labels).reshape(-1)


def _array(name: str, value: Any, origin: str) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:
        raise UsageError(f"{origin}: '{name}' is not an array of numbers") from error


def _single(array: Array, inputs: list[gs.Variable], origin: str) -> Feed:
    if len(inputs) != 1:
        names = ", ".join(f"'{t.name}'" for t in inputs)
        raise UsageError(f"{origin} is one array but the model has {len(inputs)} inputs: {names}")
    return {inputs[0].name: array}


def _run_script(file: Path, function: str, origin: str) -> list[Feed]:
    if not file.is_file():
        raise UsageError(f"{origin} does not exist")
    name = f"deftonnx_script_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{origin} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look their module up
    with users_code(origin, file.resolve().parent):
        spec.loader.exec_module(module)
        produce = getattr(module, function, None)
        if produce is None:
            raise UsageError(f"'{file}' has no function '{function}'")
        return list(_iterate(produce(), origin))


@contextlib.contextmanager
def users_code(what: str, folder: Path | None = None) -> Iterator[None]:
    """Runs code that is not ours: it may import from `folder`, what it prints goes to stderr, and what it raises
    becomes one sentence."""
    path = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except DeftError:
        raise
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise UsageError(f"{what} failed: {type(error).__name__}: {lines[0]}") from error
    finally:
        sys.path[:] = path


def _iterate(source: Any, origin: str) -> Iterator[Feed]:
    if hasattr(source, "get_next"):  # onnxruntime.quantization.CalibrationDataReader
        source = iter(source.get_next, None)
    if not isinstance(source, Iterable):
        raise UsageError(f"{origin} gives {type(source).__name__}, which is not an iterable of feed dicts")
    for feed in source:
        if not isinstance(feed, dict):
            raise UsageError(f"{origin} yields {type(feed).__name__}, not a dict of input name to array")
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
        if t.dtype is not None and value.dtype != (kind := _array_type(t)):
            raise UsageError(f"{origin}: '{name}' has type {value.dtype}, but the model wants {kind}")
        if t.shape is not None:
            fits = value.ndim == len(t.shape) and all(
                not isinstance(d, int) or d <= 0 or d == s for d, s in zip(t.shape[1:], value.shape[1:], strict=True)
            )
            if not fits:
                raise UsageError(f"{origin}: '{name}' has shape {list(value.shape)}, but the model wants {t.shape}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UsageError(f"{origin}: '{name}' holds NaN or infinite values")


def _array_type(tensor: gs.Variable) -> np.dtype[Any]:
    """The type of arrays for an input. NumPy has no bfloat16: float32, which is cast when the model runs."""
    if tensor.dtype == TensorProto.BFLOAT16:
        return np.dtype(np.float32)
    if isinstance(tensor.dtype, int):
        name = TensorProto.DataType.Name(tensor.dtype).lower()
        raise UsageError(f"input '{tensor.name}' of the model has type {name}, which arrays cannot have")
    return np.dtype(tensor.dtype)


def _check_whole(feed: Feed, inputs: list[gs.Variable], origin: str) -> None:
    """A feed that runs as it is must have the model's own batch too."""
    for t in inputs:
        value = feed[t.name]
        if t.shape and isinstance(t.shape[0], int) and 0 < t.shape[0] != len(value):
            raise UsageError(f"{origin}: '{t.name}' has shape {list(value.shape)}, but the model wants {t.shape}")


def _check_labels(labels: Array, samples: int, origin: str) -> Array:
    if len(labels) != samples:
        raise UsageError(f"{origin} holds {samples} samples but {len(labels)} labels")
    if labels.dtype.kind not in "iub" and not (labels.dtype.kind == "f" and (labels == np.round(labels)).all()):
        raise UsageError(f"{origin}: labels must be class numbers, one a sample")
    return labels.astype(np.int64)
