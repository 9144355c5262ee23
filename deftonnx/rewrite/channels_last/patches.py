"""Convolutions whose windows lie side by side, as the first layer of a vision transformer.

The pixels of a window become the channels of one pixel, and the convolution a product: nothing is filled up with zeros,
and no window is looked for.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import unused_name


def is_patches(node: gs.Node, alignment: int) -> bool:
    """True for a Conv whose windows lie side by side on an image of known size, whole and with all of its channels,
    where the channels alone are no multiple of `alignment` but those of a window are."""
    x, attrs = node.inputs[0], node.attrs
    kernel, image = list(node.inputs[1].shape[2:]), list(x.shape)[2:]
    features = int(np.prod(node.inputs[1].shape[1:]))
    return (
        attrs.get("group", 1) == 1
        and max(kernel) > 1
        and list(attrs.get("strides") or [1] * len(kernel)) == kernel
        and not any(attrs.get("pads") or [])
        and attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and all(d == 1 for d in attrs.get("dilations") or [])
        and all(isinstance(size, int) and size > 0 and size % k == 0 for size, k in zip(image, kernel, strict=True))
        and x.shape[1] % alignment != 0
        and features % alignment == 0
    )


def windows(graph: gs.Graph, node: gs.Node) -> tuple[gs.Variable, gs.Node]:
    """X of the Conv `node`, which `is_patches`, with a window a pixel and channels last; and the Conv of it, 1×1."""
    x, weight = node.inputs[0], node.inputs[1]
    batch, channels, *image = list(x.shape)
    kernel = list(weight.shape[2:])
    count = [size // k for size, k in zip(image, kernel, strict=True)]
    axes = range(2, 2 + 2 * len(kernel), 2)
    name = unused_name(f"{node.name}/windows")
    apart = gs.Variable(f"{name}/apart", x.dtype)
    apart.shape = [batch, channels, *(n for pair in zip(count, kernel, strict=True) for n in pair)]
    moved = gs.Variable(f"{name}/moved", x.dtype, [batch, *count, channels, *kernel])
    source = gs.Variable(f"{name}/pixels", x.dtype, [batch, *count, channels * int(np.prod(kernel))])
    divided = gs.Constant(f"{name}/divided", np.array([0, *apart.shape[1:]], np.int64))
    joined = gs.Constant(f"{name}/joined", np.array([0, *source.shape[1:]], np.int64))
    order = [0, *axes, 1, *(axis + 1 for axis in axes)]
    graph.nodes.append(gs.Node("Reshape", f"{name}/divide", {}, [x, divided], [apart]))
    graph.nodes.append(gs.Node("Transpose", f"{name}/move", {"perm": order}, [apart], [moved]))
    graph.nodes.append(gs.Node("Reshape", f"{name}/join", {}, [moved, joined], [source]))
    values = weight.values.reshape(weight.shape[0], -1, *[1] * len(kernel))
    product = gs.Constant(f"{name}/weight", values)
    return source, gs.Node("Conv", node.name, {}, [x, product, *node.inputs[2:]])
