"""Pooling and local response normalisation inside a region: DeftPool."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.formats.operator_function import DOMAIN, OLDEST_OPSET
from deftonnx.formats.pool_function import (
    AVERAGE,
    AVERAGE_PADDED,
    DILATED_AVERAGES,
    MAX,
    NORMALISE,
    OPERATOR,
    pool_attributes,
)
from deftonnx.layers.linear import unused_name
from deftonnx.rewrite.absorb.parameters import integers
from deftonnx.rewrite.channels_last.moves import Move
from deftonnx.rewrite.channels_last.normalisation import window_of
from deftonnx.rewrite.channels_last.region import Region

_IMAGE_AXES = (1, 2)
LARGE_IMAGE = 28 * 28
"""Pixels from which on a whole image is pooled in two steps."""


def pool(region: Region, node: gs.Node) -> None:
    """MaxPool and AveragePool."""
    window = window_of(node)
    if window is None or not _fits(region, node):
        return
    if _is_idle(window):
        region.same(node.inputs[0], node.outputs[0])
        node.outputs.clear()
        return
    kind = MAX
    if node.op == "AveragePool":
        kind = AVERAGE_PADDED if node.attrs.get("count_include_pad", 0) else AVERAGE
        if region.graph.opset < DILATED_AVERAGES and window["dilations"] != [1] * len(window["dilations"]):
            return
    _replace(region, node, pool_attributes(kind, **window, ceil_mode=bool(node.attrs.get("ceil_mode", 0))))


def whole_image(region: Region, node: gs.Node) -> None:
    """GlobalMaxPool and GlobalAveragePool."""
    if _fits(region, node):
        kind = MAX if node.op == "GlobalMaxPool" else AVERAGE
        _pool_parts(region, node, kind)
        _replace(region, node, pool_attributes(kind, [0] * (len(node.inputs[0].shape) - 2)))


def mean(region: Region, node: gs.Node) -> None:
    """A mean over the image. Without `keepdims` it is (batch, channels), whatever came last."""
    x, y = node.inputs[0], node.outputs[0]
    axes = integers(node, "axes", 1)
    rank = len(x.shape)
    if axes is None or sorted(axis % rank for axis in axes) != list(range(2, rank)):
        return
    attributes = pool_attributes(AVERAGE, [0] * (rank - 2)) if rank - 2 in _IMAGE_AXES else None
    if attributes is None or region.graph.opset < OLDEST_OPSET:
        return
    if node.attrs.get("keepdims", 1):
        if y.shape is not None:
            _pool_parts(region, node, AVERAGE)
            _replace(region, node, attributes)
        return
    _pool_parts(region, node, AVERAGE)
    source = region.last(node.inputs[0])
    pooled = gs.Variable(unused_name(f"{y.name}/pooled"), source.dtype, [x.shape[0], *[1] * (rank - 2), x.shape[1]])
    name = unused_name(node.name)
    region.graph.nodes.append(gs.Node(OPERATOR, name, attributes, [source], [pooled], domain=DOMAIN))
    node.op, node.attrs, node.inputs = "Flatten", {"axis": 1}, [pooled]


def normalise(region: Region, node: gs.Node) -> None:
    """LRN, of an odd number of channels."""
    attrs = node.attrs
    if len(node.inputs[0].shape) == 4 and attrs["size"] % 2 and _fits(region, node):
        numbers: dict[str, Any] = {
            "alpha": attrs.get("alpha", 1e-4),
            "beta": attrs.get("beta", 0.75),
            "bias": attrs.get("bias", 1.0),
        }
        _replace(region, node, pool_attributes(NORMALISE, [1, 1], size=attrs["size"], **numbers))


def scale(region: Region, node: gs.Node, attributes: dict[str, Any]) -> None:
    """The end of a normalisation that `written_out` knows."""
    if _fits(region, node):
        _replace(region, node, attributes)


def _is_idle(window: dict[str, Any]) -> bool:
    """True for windows of a pixel each, as exporters write adaptive pooling where it has nothing to do."""
    return {*window["kernel_shape"], *window["strides"]} == {1} and not any(window["pads"])


def _pool_parts(region: Region, node: gs.Node, kind: str) -> None:
    """Pool equal parts of a large image first: a window is one block's work, and few images make few windows."""
    x = node.inputs[0]
    image = list(x.shape)[2:]
    if not all(isinstance(size, int) for size in image) or int(np.prod(image)) < LARGE_IMAGE:
        return
    part = [max(k for k in range(1, math.isqrt(size) + 1) if size % k == 0) for size in image]
    if int(np.prod(part)) == 1:
        return
    source, extra = region.filled(x)
    sizes = [size // k for size, k in zip(image, part, strict=True)]
    pooled = gs.Variable(unused_name(f"{node.name}/parts"), x.dtype, [x.shape[0], x.shape[1], *sizes])
    made = region.outputs(pooled, extra)
    attributes = pool_attributes(kind, part, strides=part)
    name = unused_name(f"{node.name}/parts")
    region.graph.nodes.append(gs.Node(OPERATOR, name, attributes, [source], [made], domain=DOMAIN))
    node.inputs = [pooled, *node.inputs[1:]]


def _fits(region: Region, node: gs.Node) -> bool:
    y = node.outputs[0]
    alone = all(not t.name or not (t.outputs or t in region.reserved) for t in node.outputs[1:])
    known = y.shape is not None and len(node.inputs[0].shape) - 2 in _IMAGE_AXES
    return bool(alone and known and region.graph.opset >= OLDEST_OPSET)


def _replace(region: Region, node: gs.Node, attributes: dict[str, Any]) -> None:
    """Make `node` a DeftPool, which works channel by channel unless it normalises over them."""
    x = node.inputs[0]
    across = attributes["size"] > 1
    source, extra = (region.last(x), 0) if across else region.filled(x)
    node.outputs = [region.outputs(node.outputs[0], extra)]
    node.op, node.domain, node.attrs, node.inputs = OPERATOR, DOMAIN, attributes, [source]


POOLS: dict[str, Move] = {
    "MaxPool": pool,
    "AveragePool": pool,
    "GlobalMaxPool": whole_image,
    "GlobalAveragePool": whole_image,
    "ReduceMean": mean,
    "LRN": normalise,
}
