"""Random inputs have the model's types and shapes, and what they cannot know they ask for."""

import ml_dtypes
import numpy as np
import pytest
from onnx import numpy_helper, parser

from deftonnx.errors import UsageError
from deftonnx.runtime.made_up_inputs import made_up_inputs


def model(inputs, body="y = Identity (x)", output="float[N] y"):
    return parser.parse_model(f'<ir_version: 10, opset_import: ["": 17]> g ({inputs}) => ({output}) {{ {body} }}')


@pytest.mark.parametrize(
    ("element", "dtype"),
    [
        ("float", np.float32),
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("double", np.float64),
        ("int64", np.int64),
        ("uint8", np.uint8),
        ("bool", np.bool_),
    ],
)
def test_types(element, dtype):
    x = made_up_inputs(model(f"{element}[N, 40] x"), "m", 25, {})["x"]
    assert x.dtype == dtype
    assert x.shape == (25, 40)
    assert (x != 0).all()
    assert len(np.unique(x)) > 100 or np.issubdtype(dtype, np.integer) or dtype == np.bool_


def test_free_axes_take_the_batch_and_the_given_lengths():
    feed = made_up_inputs(model("float[N, sequence] x, float[3] z"), "m", None, {"sequence": 7, "unused": 1})
    assert feed["x"].shape == (1, 7)
    assert feed["z"].shape == (3,)
    assert made_up_inputs(model("float[3, 2] x"), "m", 3, {})["x"].shape == (3, 2)


def test_seeds():
    first, again, other = (made_up_inputs(model("float[N, 9] x"), "m", 2, {}, seed)["x"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_row_numbers_stay_inside_the_table():
    proto = model(
        "int64[N, 50] ids, int64[N, 50] mask", "a = Gather (table, ids) b = Cast <to = 1> (mask)", "float[N] a"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((11, 2), np.float32), "table"))
    feed = made_up_inputs(proto, "m", 4, {})
    assert feed["ids"].min() == 1
    assert feed["ids"].max() == 10
    assert (feed["mask"] == 1).all()


def test_columns_picked_stay_inside_the_table():
    proto = model("int64[N, 50] ids", "a = Gather <axis = 1> (table, ids)", "float[N] a")
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((11, 3), np.float32), "table"))
    assert made_up_inputs(proto, "m", 4, {})["ids"].max() == 2


@pytest.mark.parametrize(
    ("inputs", "batch", "words"),
    [
        ("float[N, sequence] x", 2, "--dim sequence=LENGTH"),
        ("float[N, ?] x", 2, "--inputs"),
        ("float[4, 2] x", 2, "fixed first axis of 4"),
        ("string[N] x", 2, "string"),
        ("seq(float[N]) x", 2, "not a tensor"),
    ],
)
def test_refusals(inputs, batch, words):
    with pytest.raises(UsageError, match="input 'x' of 'm'") as caught:
        made_up_inputs(model(inputs), "m", batch, {})
    assert words in str(caught.value)
