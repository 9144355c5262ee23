"""One-layer DeftPool models and the float64 arithmetic they are compared with."""

import itertools

import numpy as np
from gemm_model import ONNX_TYPE
from onnx import helper

from deftonnx.formats.pool_function import OPERATOR, attach_pool_functions, pool_attributes

# kind, image, channels, attributes
POOLS = {
    "max": ("max", (9, 12), 16, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "max_odd_channels": ("max", (7, 6), 5, {"kernel_shape": [2, 3], "strides": [1, 2], "pads": [0, 1, 1, 2]}),
    "max_ceil": ("max", (8, 9), 24, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": True}),
    "max_ceil_padded": (
        "max",
        (6, 6),
        8,
        {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1] * 4, "ceil_mode": True},
    ),
    "max_dilated": ("max", (11, 10), 8, {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 0, 0, 1]}),
    "max_global": ("max", (7, 5), 40, {"kernel_shape": [0, 0]}),
    "max_1d": ("max", (19,), 12, {"kernel_shape": [4], "strides": [3], "pads": [1, 2]}),
    "average": ("average", (9, 12), 16, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "average_padded": (
        "average_padded",
        (9, 10),
        16,
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": True},
    ),
    "average_ceil": ("average_padded", (32, 31), 8, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": True}),
    "average_wide": ("average", (14, 15), 8, {"kernel_shape": [7, 7], "strides": [7, 4], "pads": [0, 3, 0, 3]}),
    "average_global": ("average", (7, 7), 72, {"kernel_shape": [0, 0]}),
    "average_global_odd": ("average", (3, 5), 3, {"kernel_shape": [0, 0]}),
    "average_1d": ("average", (33,), 8, {"kernel_shape": [0]}),
    "normalise": (
        "normalise",
        (6, 7),
        20,
        {"kernel_shape": [1, 1], "size": 5, "alpha": 0.3, "beta": 0.75, "bias": 2.0},
    ),
    "normalise_narrow": ("normalise", (3, 2), 2, {"kernel_shape": [1, 1], "size": 9, "alpha": 2.0, "beta": 0.5}),
    "normalise_vectors": ("normalise", (6, 7), 24, {"kernel_shape": [1, 1], "size": 17, "alpha": 0.3, "beta": 0.75}),
    "normalise_far": ("normalise", (5, 3), 24, {"kernel_shape": [1, 1], "size": 19, "alpha": 0.3, "beta": 0.75}),
    "normalise_image": (
        "normalise",
        (8, 9),
        16,
        {"kernel_shape": [3, 5], "pads": [1, 2, 1, 2], "alpha": 0.9, "beta": 0.75},
    ),
}


def case(name, dtype, *, batch=3, opset=17, seed=0):
    """X, a model of one DeftPool, and Y in float64."""
    kind, image, channels, window = POOLS[name]
    X = np.random.default_rng(seed).standard_normal((batch, *image, channels)).astype(dtype)
    attributes = pool_attributes(kind, **window, output_type=ONNX_TYPE[X.dtype])
    return X, pool_model(X, attributes, opset), reference(X, attributes)


def pool_model(X, attributes, opset=17):
    """A model of one DeftPool, batch and image unknown."""
    element_type = ONNX_TYPE[X.dtype]
    shape = [None] * (X.ndim - 1) + [X.shape[-1]]
    tensors = [helper.make_tensor_value_info(name, element_type, shape) for name in "XY"]
    node = helper.make_node(OPERATOR, ["X"], ["Y"], "layer", domain="ai.deftonnx", **attributes)
    graph = helper.make_graph([node], "one_layer", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return attach_pool_functions(model)


def reference(X, attributes):
    """Y in float64, one tap at a time."""
    values = X.astype(np.float64)
    if attributes["kind"] == "normalise":
        return _normalised(values, attributes)
    image = X.shape[1:-1]
    axes = len(image)
    kernel = [k or size for k, size in zip(attributes["kernel_shape"], image, strict=True)]
    strides, pads, dilations = (attributes[name] for name in ("strides", "pads", "dilations"))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    room = [size + pads[i] + pads[axes + i] - reach[i] for i, size in enumerate(image)]
    count = [-(-r // s) + 1 if attributes["ceil_mode"] else r // s + 1 for r, s in zip(room, strides, strict=True)]
    count = [n - ((n - 1) * s >= size + p) for n, s, size, p in zip(count, strides, image, pads, strict=False)]
    is_max = attributes["kind"] == "max"
    Y = np.full((len(X), *count, X.shape[-1]), -np.inf if is_max else 0.0)
    for place in itertools.product(*map(range, count)):
        seen, divisor = [], 0
        for tap in itertools.product(*map(range, kernel)):
            at = [o * s - p + t * d for o, s, p, t, d in zip(place, strides, pads, tap, dilations, strict=False)]
            inside = all(0 <= a < size for a, size in zip(at, image, strict=True))
            padded = all(a < size + pads[axes + i] for i, (a, size) in enumerate(zip(at, image, strict=True)))
            divisor += padded if attributes["kind"] == "average_padded" else inside
            if inside:
                seen.append(values[(slice(None), *at)])
        Y[(slice(None), *place)] = np.max(seen, axis=0) if is_max else np.sum(seen, axis=0) / divisor
    return Y


def _normalised(values, attributes):
    kernel, size = attributes["kernel_shape"], attributes["size"]
    widths = [*((k // 2, k // 2) for k in kernel), (size // 2, size // 2)]
    squares = np.pad(values**2, [(0, 0), *widths])
    windows = np.lib.stride_tricks.sliding_window_view(squares, [*kernel, size], axis=range(1, values.ndim))
    mean = windows.mean(axis=tuple(range(values.ndim, 2 * values.ndim - 1)))
    return values / (attributes["bias"] + attributes["alpha"] * mean) ** attributes["beta"]
