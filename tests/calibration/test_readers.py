"""Data in every form gives the same samples, and batches respect the model's own shapes."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from small_files import SAMPLES, inputs, small_model

import deftonnx
from deftonnx.calibration import readers
from deftonnx.errors import UsageError

X = [gs.Variable("x", np.float32, ["N", 16])]
SCRIPT = """
import numpy as np
def calibration_data():
    for part in np.array_split(np.load({path!r}), 3):
        yield {{"x": part}}
other = calibration_data
"""


class Reader:
    """What onnxruntime.quantization calls a CalibrationDataReader."""

    def __init__(self, x: np.ndarray[Any, Any]) -> None:
        self.parts = iter(np.array_split(x, 5))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        part = next(self.parts, None)
        return None if part is None else {"x": part}


def npz(folder: Path) -> Path:
    np.savez_compressed(folder / "data.npz", x=inputs())
    return folder / "data.npz"


def npy(folder: Path) -> str:
    np.save(folder / "x.npy", inputs())
    return str(folder / "x.npy")


def directory(folder: Path) -> Path:
    parts = folder / "parts"
    parts.mkdir()
    for serial, part in enumerate(np.array_split(inputs(), 4)):
        np.savez(parts / f"{serial}.npz", x=part)
    return parts


def script(folder: Path) -> Path:
    (folder / "feeds.py").write_text(SCRIPT.format(path=npy(folder)))
    return folder / "feeds.py"


def generator(folder: Path) -> Iterator[dict[str, Any]]:
    return ({"x": row[None]} for row in inputs())


FORMS: list[Callable[[Path], Any]] = [
    npz,
    npy,
    directory,
    script,
    lambda folder: f"{script(folder)}:other",
    lambda folder: Reader(inputs()),
    generator,
    lambda folder: [{"x": inputs()[:10]}, {"x": inputs()[10:]}],
    lambda folder: {"x": inputs()},
    lambda folder: inputs(),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_batches(form: Callable[[Path], Any], tmp_path: Path) -> None:
    dataset = readers.read(form(tmp_path), X)
    assert dataset.samples == SAMPLES
    got = readers.batches(dataset, X, 40, seed=3, size=16)
    want = readers.batches(readers.Dataset([{"x": inputs()}]), X, 40, seed=3, size=16)
    assert [len(feed["x"]) for feed in got] == [16, 16, 8]
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours["x"], theirs["x"])


def test_every_form_gives_the_same_model(tmp_path: Path) -> None:
    models = set()
    for serial, form in enumerate(FORMS):
        folder = tmp_path / str(serial)
        folder.mkdir()
        result = deftonnx.optimize(
            small_model(), calib_data=form(folder), density=0.5, granularity="element", measure=False
        )
        models.add(result.model.SerializeToString(deterministic=True))
    assert len(models) == 1


@pytest.mark.parametrize("form", [npz, directory])
def test_labels(form: Callable[[Path], Path], tmp_path: Path) -> None:
    path = form(tmp_path)
    start = 0
    for file in sorted(path.glob("*.npz")) if path.is_dir() else [path]:
        x = np.load(file)["x"]
        np.savez(file, x=x, labels=np.arange(start, start + len(x))[:, None])
        start += len(x)
    dataset = readers.read(path, X)
    assert dataset.labels is not None
    np.testing.assert_array_equal(dataset.labels, np.arange(SAMPLES))


def test_an_input_may_be_called_labels() -> None:
    wanted = [gs.Variable("labels", np.int64, ["N"])]
    dataset = readers.read({"labels": np.arange(5)}, wanted)
    assert dataset.labels is None
    np.testing.assert_array_equal(dataset.feeds[0]["labels"], np.arange(5))


@pytest.mark.parametrize(
    ("batch", "samples", "sizes", "last"),
    [("N", 10, [4, 4, 2], 9), (4, 10, [4, 4], 7), (4, 2, [4], 1), (1, 3, [1, 1, 1], 2), (0, 10, [4, 4, 2], 9)],
)
def test_batches(batch: str | int, samples: int, sizes: list[int], last: int) -> None:
    """A fixed batch leaves a remainder out, or repeats samples where there are too few for one batch."""
    wanted = [gs.Variable("x", np.float32, [batch, 1])]
    x = np.arange(samples, dtype=np.float32)[:, None]
    dataset = readers.read({"x": x, "labels": np.arange(samples)}, wanted)
    feeds = readers.batches(dataset, wanted, None, 0, 4)
    assert [len(feed["x"]) for feed in feeds] == sizes
    labels = dataset.labels_of(feeds)
    np.testing.assert_array_equal(np.concatenate([feed["x"][:, 0] for feed in feeds]), labels)
    assert labels[-1] == last


def test_samples_are_picked_by_seed() -> None:
    dataset = readers.read(inputs(), X)
    picks = [readers.batches(dataset, X, 10, seed, 64)[0]["x"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(picks[0], picks[1])
    assert not np.array_equal(picks[0], picks[2])
    assert len({row.tobytes() for row in picks[0]}) == 10


def test_feeds_of_varying_shape_stay_apart() -> None:
    wanted = [gs.Variable("x", np.float32, ["N", "T"])]
    feeds = [{"x": np.zeros((2, length), np.float32)} for length in (3, 5, 4)]
    dataset = readers.read(feeds, wanted)
    assert not dataset.stacked
    assert dataset.samples == 6
    assert [feed["x"].shape for feed in readers.batches(dataset, wanted, None, 0, 64)] == [(2, 3), (2, 5), (2, 4)]
    assert len(readers.batches(dataset, wanted, 2, 0, 64)) == 2


def test_inputs_without_a_common_sample_axis() -> None:
    wanted = [gs.Variable("x", np.float32, ["N", 3]), gs.Variable("scale", np.float32, [])]
    feed = {"x": np.zeros((5, 3), np.float32), "scale": np.float32(2)}
    dataset = readers.read([feed], wanted)
    assert dataset.samples == 1
    assert readers.batches(dataset, wanted, None, 0, 64)[0]["x"].shape == (5, 3)


def test_fixed_shapes_that_no_batch_can_meet() -> None:
    wanted = [gs.Variable("x", np.float32, [4, 3]), gs.Variable("w", np.float32, [7, 3])]
    good = {"x": np.zeros((4, 3), np.float32), "w": np.zeros((7, 3), np.float32)}
    assert readers.batches(readers.read([good], wanted), wanted, None, 0, 64) == [good]
    with pytest.raises(UsageError, match="'x' has shape"):
        readers.read([{**good, "x": np.zeros((5, 3), np.float32)}], wanted)


def test_random_data() -> None:
    wanted = [gs.Variable("x", np.float16, ["N", 3]), gs.Variable("ids", np.int64, ["N"])]
    feed = readers.random_data(wanted, 8, seed=0).feeds[0]
    assert (feed["x"].shape, feed["x"].dtype) == ((8, 3), np.float16)
    assert (feed["ids"] == 1).all()
    assert {*readers.random_data(wanted, 90, 0, {"ids": 5}).feeds[0]["ids"]} == {1, 2, 3, 4}
    assert not readers.random_data(wanted, 8, 0, {"ids": 1}).feeds[0]["ids"].any()
    with pytest.raises(UsageError, match="no numbers"):
        readers.random_data([gs.Variable("text", np.object_, ["N"])], 8, seed=0)


def test_users_code_leaves_the_import_path_alone(tmp_path: Path) -> None:
    before = list(sys.path)
    (tmp_path / "beside.py").write_text("import numpy as np\nX = np.zeros((3, 16), np.float32)\n")
    (tmp_path / "feeds.py").write_text(
        "from dataclasses import dataclass\nimport beside\n"
        "@dataclass\nclass Feed:\n    x: 'object'\n"
        "def calibration_data():\n    return [vars(Feed(beside.X))]\n"
    )
    assert readers.read(tmp_path / "feeds.py", X).samples == 3
    assert sys.path == before
