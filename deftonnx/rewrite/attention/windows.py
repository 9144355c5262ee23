"""Masks of the windows of an image, as shifted windows (Swin) have them, in the shape that MultiHeadAttention takes.

Windows are samples there, so that an image's masks come again for every image. They are added to a bias that all
windows share while they are constant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import unused_name
from deftonnx.rewrite.attention.core import Core
from deftonnx.rewrite.attention.layout import Shapes

_AXES = 5


def of_windows(
    graph: gs.Graph, found: Core, source: gs.Tensor, heads: int, runs: list[Shapes], known: dict[Any, gs.Tensor]
) -> gs.Tensor | str:
    """The masks and the bias of `found` as (images * windows, heads, S, T), or why not; made once for equal ones.

    `source` is (images * windows, S, features).
    """
    assert found.windows is not None
    assert found.apart is not None
    mask = found.windows.values
    mask = mask.reshape((1,) * (_AXES - mask.ndim) + mask.shape)
    bias = np.zeros((), np.float32) if found.mask is None else getattr(found.mask, "values", None)
    windows = mask.shape[1] if mask.ndim == _AXES else 0
    before, behind = found.apart.inputs[0].inputs[0], found.softmax.inputs[0]
    for shapes in runs:
        shape, samples = shapes.get(found.apart.name, ()), shapes[source.name][0]
        whole = len(shape) == _AXES and mask.shape[0] == 1 and shape[0] * shape[1] == samples
        whole = whole and shapes.get(before.name) == shapes.get(behind.name) == (samples, *shape[2:])
        if bias is None or not whole or shape[1] != windows or shape[2] != heads:
            return "the masks of its windows are not the same for all images"
        if not all(_spreads(part, (1, *shape[1:])) for part in (mask.shape, bias.shape)):
            return "the masks of its windows do not have the shape of its scores"
    total = np.broadcast_to(mask + bias, (1, windows, heads, *mask.shape[3:])).astype(np.float32)
    key = "windows", total.shape, total.tobytes()
    if key not in known:
        known[key] = _repeated(graph, total, source, unused_name(f"{found.softmax.name}/windows"))
    return known[key]


def _repeated(graph: gs.Graph, masks: np.ndarray[Any, Any], source: gs.Tensor, name: str) -> gs.Variable:
    """`masks` (1, windows, heads, S, T) for every image."""
    tensors = [gs.Variable(f"{name}/{part}", np.int64) for part in ("shape", "samples", "images", "sizes")]
    shape, samples, images, sizes = tensors
    numbers = {"first": [0], "windows": [masks.shape[1]], "others": [1] * (_AXES - 1), "joined": [-1, *masks.shape[2:]]}
    first, windows, others, joined = (gs.Constant(f"{name}/{n}", np.array(v, np.int64)) for n, v in numbers.items())
    every = gs.Variable(f"{name}/every", np.float32)
    result = gs.Variable(name, np.float32, [None, *masks.shape[2:]])
    graph.nodes += [
        gs.Node("Shape", shape.name, {}, [source], [shape]),
        gs.Node("Gather", samples.name, {"axis": 0}, [shape, first], [samples]),
        gs.Node("Div", images.name, {}, [samples, windows], [images]),
        gs.Node("Concat", sizes.name, {"axis": 0}, [images, others], [sizes]),
        gs.Node("Expand", every.name, {}, [gs.Constant(f"{name}/masks", np.ascontiguousarray(masks)), sizes], [every]),
        gs.Node("Reshape", name, {}, [every, joined], [result]),
    ]
    return result


def _spreads(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array of those sizes can be added to one of that shape, which stays as it is."""
    pairs = zip(reversed(sizes), reversed(shape), strict=False)
    return len(sizes) <= len(shape) and all(size in (1, most) for size, most in pairs)
