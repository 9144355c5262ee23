"""Local response normalisation as exporters write it, and the windows of pooling operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.formats.pool_function import NORMALISE, pool_attributes
from deftonnx.rewrite.packed_conv import same_pads

_IMAGE_AXES = (1, 2)
_CHANNEL = 2
"""The axis of channels in (batch, 1, channels, rows, columns)."""


def written_out(node: gs.Node) -> dict[str, Any] | None:
    """The attributes of the DeftPool that stands for `node`, if that is the end of a normalisation.

    Exporters write x / (bias + alpha * mean(x * x))^beta, or x times the power -beta. The mean over the image is an
    AveragePool; that over channels one of three axes, between Reshapes. To be asked before anything is moved.
    """
    if node.op not in ("Div", "Mul") or node.inputs[0].shape is None or (found := _match_scaling(node)) is None:
        return None
    pooling, numbers = found
    if isinstance(pooling, int):
        return pool_attributes(NORMALISE, [1, 1], size=pooling, **numbers)
    window = window_of(pooling)
    if window is None or any(k % 2 == 0 for k in window["kernel_shape"]):
        return None
    half = [k // 2 for k in window["kernel_shape"]]
    ones = [1] * len(half)
    counted = pooling.attrs.get("count_include_pad", 0) or not any(half)
    if not counted or window["pads"] != half * 2 or window["strides"] != ones or window["dilations"] != ones:
        return None
    return pool_attributes(NORMALISE, **window, **numbers) if len(half) in _IMAGE_AXES else None


def _match_scaling(node: gs.Node) -> tuple[gs.Node | int, dict[str, Any]] | None:
    """The AveragePool over the image, or the number of channels averaged, in a normalisation that `node` ends; and its
    numbers."""
    x, factor = node.inputs
    power = _maker(factor, "Pow")
    exponent = None if power is None else _number(power.inputs[1])
    if power is None or exponent is None:
        return None
    numbers: dict[str, Any] = {"beta": exponent if node.op == "Div" else -exponent}
    at = power.inputs[0]
    for name, op in (("bias", "Add"), ("alpha", "Mul")):
        if (step := _maker(at, op)) is None:
            return None
        values = [_number(t) for t in step.inputs]
        number = next((value for value in values if value is not None), None)
        if number is None:
            return None
        numbers[name], at = number, step.inputs[values.index(None)]
    if (size := _channels_averaged(at, x)) is not None:
        return size, numbers
    pooling = _maker(at, "AveragePool")
    square = None if pooling is None else _maker(pooling.inputs[0], "Mul")
    if pooling is None or square is None or not all(t is x for t in square.inputs):
        return None
    return pooling, numbers


def _channels_averaged(mean: gs.Tensor, x: gs.Tensor) -> int | None:
    """How many neighbouring channels of x * x `mean` averages, as torch's local_response_norm does."""
    restored = _maker(mean, "Reshape")
    pooling = None if restored is None else _maker(_unsqueezed(restored.inputs[0]), "AveragePool")
    pad = None if pooling is None else _maker(pooling.inputs[0], "Pad")
    apart = None if pad is None else _maker(pad.inputs[0], "Reshape")
    square = None if apart is None else _maker(apart.inputs[0], "Mul")
    if pooling is None or pad is None or apart is None or square is None or not all(t is x for t in square.inputs):
        return None
    size = int(pooling.attrs["kernel_shape"][0])
    window = window_of(pooling)
    plain = {"kernel_shape": [size, 1, 1], "strides": [1] * 3, "pads": [0] * 6, "dilations": [1] * 3}
    shape = apart.outputs[0].shape
    if window != plain or size % 2 == 0 or shape is None or len(shape) != 5 or mean.shape is None:
        return None
    pads = np.zeros((2, 5), np.int64)
    pads[:, _CHANNEL] = size // 2
    padded = isinstance(pad.inputs[1], gs.Constant) and np.array_equal(pad.inputs[1].values, pads.reshape(-1))
    zeros = len(pad.inputs) < 3 or not pad.inputs[2].name or _number(pad.inputs[2]) == 0
    sizes = list(x.shape)[1:]
    same = (
        list(mean.shape)[1:] == sizes and all(isinstance(n, int) for n in sizes) and list(shape[1:3]) == [1, sizes[0]]
    )
    return size if padded and zeros and same and pad.attrs.get("mode", "constant") == "constant" else None


def _unsqueezed(tensor: gs.Tensor) -> gs.Tensor:
    """What `tensor` is squeezed of: by a Squeeze, or by an If that squeezes where the size is 1."""
    if (squeeze := _maker(tensor, "Squeeze")) is not None:
        return squeeze.inputs[0]
    choice = _maker(tensor, "If")
    if choice is None:
        return tensor
    bodies = [list(choice.attrs[name].nodes) for name in ("then_branch", "else_branch")]
    steps = [node for body in bodies for node in body if node.op in ("Squeeze", "Identity")]
    known = all(node.op in ("Squeeze", "Identity", "Constant") for body in bodies for node in body)
    sources = {step.inputs[0].name: step.inputs[0] for step in steps}
    return next(iter(sources.values())) if known and len(steps) == len(bodies) and len(sources) == 1 else tensor


def _maker(tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The node that makes `tensor`, if it is such a one."""
    return tensor.inputs[0] if len(tensor.inputs) == 1 and tensor.inputs[0].op == op else None


def _number(tensor: gs.Tensor) -> float | None:
    if isinstance(tensor, gs.Constant) and int(np.prod(tensor.shape)) == 1:
        return float(tensor.values.reshape(()))
    return None


def window_of(node: gs.Node) -> dict[str, Any] | None:
    """The attributes of the window of a pooling, None where its padding is not known."""
    kernel: list[int] = list(node.attrs["kernel_shape"])
    ones = [1] * len(kernel)
    strides, dilations = list(node.attrs.get("strides") or ones), list(node.attrs.get("dilations") or ones)
    pads = list(node.attrs.get("pads") or [0] * 2 * len(kernel))
    auto = node.attrs.get("auto_pad", "NOTSET")
    image: Sequence[Any] = list(node.inputs[0].shape)[2:]
    if auto == "VALID":
        pads = [0] * 2 * len(kernel)
    elif auto != "NOTSET":
        if not all(isinstance(size, int) for size in image):
            return None
        pads = same_pads(auto, kernel, strides, dilations, image)
    return {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations}
