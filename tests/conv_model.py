"""One-layer DeftConv models and the float64 arithmetic they are compared with."""

import itertools

import numpy as np
from gemm_model import ONNX_TYPE, activate
from onnx import helper, numpy_helper

from deftonnx.formats import pack_weight, unpack_weight
from deftonnx.formats.conv_function import EVERY_PIXEL, attach_conv_functions, conv_attributes, conv_node
from deftonnx.formats.gemm_function import weight_tensors


def output_image(window, image):
    """The image axes of Y."""
    axes = len(window.kernel_shape)
    padded = [size + window.pads[i] + window.pads[axes + i] for i, size in enumerate(image)]
    reach = [d * (k - 1) + 1 for d, k in zip(window.dilations, window.kernel_shape, strict=True)]
    return [(p - r) // s + 1 for p, r, s in zip(padded, reach, window.strides, strict=True)]


def dense_rows(packed, window, channels, kept=None, block=0):
    """The weight as (N, taps * channels / group), zeros where nothing is kept."""
    rows = unpack_weight(packed).T.astype(np.float64)  # (N, K)
    if not block:
        return rows
    taps = int(np.prod(window.kernel_shape))
    outputs, blocks = packed.N // window.group, taps * channels // window.group // block
    dense = np.zeros((window.group, outputs, blocks, block))
    kept = np.reshape(kept, (window.group, -1))
    for g, numbers in enumerate(kept):
        part = rows[g * outputs : (g + 1) * outputs].reshape(outputs, -1, block)
        dense[g][:, numbers - g * blocks] = part
    return dense.reshape(packed.N, -1)


def pooled(Y, pool):
    """The maxima of squares of `pool` rows and columns of Y (batch, rows, columns, N)."""
    if pool == EVERY_PIXEL:
        return Y
    rows, columns = (size // side for size, side in zip(Y.shape[1:3], pool, strict=True))
    whole = Y[:, : rows * pool[0], : columns * pool[1]].reshape(len(Y), rows, pool[0], columns, pool[1], -1)
    return whole.max(axis=(2, 4))


def reference(
    X,
    packed,
    bias,
    window,
    *,
    kept=None,
    block=0,
    residual=None,
    activation="none",
    alpha=0.0,
    beta=0.0,
    pool=EVERY_PIXEL,
):
    """Y (batch, *image, N) in float64 of the unpacked operands, one tap at a time."""
    axes, group = len(window.kernel_shape), window.group
    pads = [(window.pads[i], window.pads[axes + i]) for i in range(axes)]
    padded = np.pad(X.astype(np.float64), [(0, 0), *pads, (0, 0)])
    image = output_image(window, X.shape[1:-1])
    rows = dense_rows(packed, window, X.shape[-1], kept, block)
    weight = rows.reshape(group, packed.N // group, *window.kernel_shape, X.shape[-1] // group)
    z = np.zeros((len(X), *image, group, packed.N // group))
    for tap in itertools.product(*map(range, window.kernel_shape)):
        start = [t * d for t, d in zip(tap, window.dilations, strict=True)]
        places = [slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(start, image, window.strides, strict=True)]
        seen = padded[(slice(None), *places)].reshape(-1, group, X.shape[-1] // group).swapaxes(0, 1)
        filters = weight[(slice(None), slice(None), *tap)].swapaxes(1, 2)  # (group, channels, outputs)
        z += (seen @ filters).swapaxes(0, 1).reshape(z.shape)
    z = z.reshape(len(X), *image, packed.N) + bias
    if residual is not None:
        z = z + residual.astype(np.float64)
    return pooled(activate(activation, z, alpha, beta), pool)


def conv_model(X, packed, bias, window, *, kept=None, residual=None, opset=17, batch=None, **attributes):
    """A model of one DeftConv with inputs X and, if given, residual; `batch` names a dynamic first axis."""
    element_type = ONNX_TYPE[X.dtype]
    names = ["X", "W", "W_scale", "bias"]
    initializers = [*weight_tensors(packed, "W"), numpy_helper.from_array(bias, "bias")]
    if kept is not None or residual is not None:
        names.append("kept")
        initializers.append(numpy_helper.from_array(np.array([] if kept is None else kept, np.int32), "kept"))
    first = batch or len(X)
    inputs = [helper.make_tensor_value_info("X", element_type, [first, *X.shape[1:]])]
    image = output_image(window, X.shape[1:-1])
    if "pool" in attributes:
        image = [size // side for size, side in zip(image, attributes["pool"], strict=True)]
    shape = [first, *image, packed.N]
    if residual is not None:
        names.append("residual")
        inputs.append(helper.make_tensor_value_info("residual", element_type, shape))
    attributes = conv_attributes(packed, window, X.shape[-1], output_type=element_type, **attributes)
    node = conv_node(names, "Y", attributes, "layer")
    output = helper.make_tensor_value_info("Y", element_type, shape)
    graph = helper.make_graph([node], "one_layer", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return attach_conv_functions(model)


def conv_case(seed, image, channels, outputs, window, name, dtype=np.float32, *, batch=2, block=0, density=0.5):
    """Random X, packed weight, bias and, with a block, the kept blocks of a layer."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((batch, *image, channels)).astype(dtype)
    features = int(np.prod(window.kernel_shape)) * channels // window.group
    kept = None
    if block:
        blocks = features // block
        count = max(1, round(blocks * density))
        picks = [np.sort(rng.choice(blocks, count, replace=False)) + g * blocks for g in range(window.group)]
        kept, features = np.concatenate(picks), count * block
    weight = rng.standard_normal((features, outputs)) / np.sqrt(features)
    packed = pack_weight(weight.astype(np.float32), name)
    return X, packed, rng.standard_normal(outputs).astype(np.float32), kept
