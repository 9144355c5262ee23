"""Images of few channels, brought to channels last by their planes.

ONNX Runtime's Transpose on the GPU moves tiles of 32 channels, of which these fill a tenth; Split and Concat move every
value on its own, at the speed of memory.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import unused_name

MOST_CHANNELS = 4
LEAST_PIXELS = 4096
"""Smaller images are left to a Transpose, which is one kernel less."""


def pays(tensor: gs.Tensor) -> bool:
    """True for large images of a few channels, whose sizes are known."""
    channels, *image = list(tensor.shape)[1:]
    known = bool(image) and all(isinstance(size, int) and size > 0 for size in (channels, *image))
    return known and 1 < channels <= MOST_CHANNELS and math.prod(image) >= LEAST_PIXELS


def join(graph: gs.Graph, tensor: gs.Tensor, result: gs.Variable) -> None:
    """Make `result`, which is `tensor` (batch, channels, *image) with channels last."""
    batch, channels, *image = list(tensor.shape)
    name = unused_name(f"{result.name}/planes")
    first = [gs.Variable(f"{name}/first_{i}", tensor.dtype, [batch, 1, *image]) for i in range(channels)]
    last = [gs.Variable(f"{name}/last_{i}", tensor.dtype, [batch, *image, 1]) for i in range(channels)]
    ones = gs.Constant(f"{name}/sizes", np.ones(channels, np.int64))
    shape = gs.Constant(f"{name}/shape", np.array([0, *image, 1], np.int64))
    graph.nodes.append(gs.Node("Split", f"{name}/split", {"axis": 1}, [tensor, ones], first))
    for i, (source, plane) in enumerate(zip(first, last, strict=True)):
        graph.nodes.append(gs.Node("Reshape", f"{name}/reshape_{i}", {}, [source, shape], [plane]))
    graph.nodes.append(gs.Node("Concat", f"{name}/join", {"axis": -1}, last, [result]))
