"""Convolutions keep their channels a multiple of what fast kernels take, where that keeps few dead ones."""

from __future__ import annotations

import numpy as np
import pytest
from models import masked_and_reduced, model

TEXT = """graph (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[32,3,3,3] v, float[4,32,3,3] w> {
    [first] a = Conv <pads = [1,1,1,1]> (x, v) b = Relu (a) [last] y = Conv <pads = [1,1,1,1]> (b, w) }"""


@pytest.mark.parametrize(
    ("kept", "made"), [(32, 32), (31, 32), (26, 32), (24, 24), (17, 17), (16, 16), (13, 16), (3, 3)]
)
def test_channels_that_a_producer_makes(kept: int, made: int) -> None:
    mask = np.zeros((1, 9, 32), dtype=bool)
    mask[:, :, 32 - kept :] = True
    _, small = masked_and_reduced(model(TEXT), {"last": mask})
    shapes = {t.name: list(t.dims) for t in small.graph.initializer}
    first = next(node for node in small.graph.node if node.name == "first")
    assert shapes[first.input[1]][0] == made
    assert [node.op_type for node in small.graph.node] == ["Conv", "Relu", "Conv"]
