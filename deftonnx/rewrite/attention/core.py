"""softmax(a · b · scale + mask) · v, as exporters write it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard
from deftonnx.rewrite.attention.layout import scalar

_LONGEST = 6


@dataclass
class Core:
    """`a` is (…, S, D), `b` (…, D, T), `v` (…, T, D) and `context` (…, S, D). `windows`, if any, are masks of the
    windows of an image, which are the samples: added to the scores as `apart` (images, windows, heads, S, T)."""

    softmax: gs.Node
    a: gs.Tensor
    b: gs.Tensor
    v: gs.Tensor
    context: gs.Tensor
    scale: float
    mask: gs.Tensor | None
    windows: gs.Constant | None = None
    apart: gs.Tensor | None = None


def match(softmax: gs.Node) -> Core | str:
    """The attention around a Softmax, or why it is none."""
    scores = softmax.inputs[0]
    rank = None if scores.shape is None else len(scores.shape)
    if softmax.attrs.get("axis", -1) not in (-1, None if rank is None else rank - 1):
        return "its Softmax is not along the last axis"
    weights = _without_nan_guard(softmax.outputs[0])
    if len(weights.outputs) != 1 or weights.outputs[0].op != "MatMul" or weights.outputs[0].inputs[0] is not weights:
        return "its Softmax does not weigh the rows of a product"
    product = weights.outputs[0]
    scale, mask = 1.0, None
    windows = _windows_on(scores)
    if windows is not None:
        scores = windows[0].inputs[0].inputs[0]
    for _ in range(_LONGEST):
        if len(scores.outputs) != 1 or not scores.inputs:
            return "its scores are read elsewhere"
        node = scores.inputs[0]
        if node.op == "MatMul" and is_standard(node):
            if any(isinstance(t, gs.Constant) for t in (*node.inputs, product.inputs[1])):
                return "one of its factors is constant"
            a, b = node.inputs
            apart, added = windows or (None, None)
            return Core(softmax, a, b, product.inputs[1], product.outputs[0], scale, mask, added, apart)
        numbers = [scalar(t) for t in node.inputs]
        if node.op in ("Mul", "Div") and len(numbers) == 2 and (node.op == "Mul" or numbers[0] is None):
            number = next((x for x in numbers if x is not None), None)
            if not number:
                return "its scores are multiplied by more than a number"
            scale *= number if node.op == "Mul" else 1 / number
            scores = next(t for t, x in zip(node.inputs, numbers, strict=True) if x is None)
        elif node.op == "Add" and mask is None:
            made = [t for t in node.inputs if t.inputs and t.inputs[0].op in ("MatMul", "Mul", "Div")]
            made = [t for t in made if len(t.outputs) == 1 and t.shape is not None and None not in t.shape] or made
            scores = next((t for t in made if leads_to_product(t)), None)
            if scores is None:
                return "what its mask is added to is no product"
            mask = next(t for t in node.inputs if t is not scores)
            if scale != 1:
                return "its mask is scaled"
        else:
            return f"its scores come from {node.op}"
    return "its scores are no product"


def _windows_on(scores: gs.Tensor) -> tuple[gs.Tensor, gs.Constant] | None:
    """Scores with an axis for the windows of an image, and the constant added to them there, where `scores` are these
    as they were before: both as they are reshaped."""
    total = _alone(_alone(scores, "Reshape"), "Add")
    if total is None:
        return None
    node = total.inputs[0]
    constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
    apart = next((t for t in node.inputs if not isinstance(t, gs.Constant)), None)
    return None if len(constants) != 1 or _alone(apart, "Reshape") is None else (apart, constants[0])


def _alone(tensor: gs.Tensor | None, op: str) -> gs.Tensor | None:
    """The first input of the `op` that makes `tensor`, or `tensor` if that is an Add, where nothing else reads it."""
    node = tensor.inputs[0] if tensor is not None and len(tensor.inputs) == 1 else None
    if tensor is None or node is None or node.op != op or not is_standard(node) or len(tensor.outputs) != 1:
        return None
    return tensor if op == "Add" else node.inputs[0]


def leads_to_product(tensor: gs.Tensor) -> bool:
    """True where `tensor` is a product of matrices, scaled or not."""
    for _ in range(_LONGEST):
        if not tensor.inputs or tensor.inputs[0].op == "MatMul":
            return bool(tensor.inputs)
        varying = [t for t in tensor.inputs[0].inputs if scalar(t) is None]
        if tensor.inputs[0].op not in ("Mul", "Div") or len(varying) != 1:
            return False
        tensor = varying[0]
    return False


def _without_nan_guard(weights: gs.Tensor) -> gs.Tensor:
    """Where(IsNaN(p), 0, p), which exporters write for rows that are masked as a whole, stands for p."""
    guards = [n for n in weights.outputs if n.op == "Where"]
    if len(guards) != 1 or len(weights.outputs) != 2 or {n.op for n in weights.outputs} != {"Where", "IsNaN"}:
        return weights
    condition, zero, value = guards[0].inputs
    is_nan = condition.inputs and condition.inputs[0].op == "IsNaN" and condition.inputs[0].inputs[0] is weights
    is_zero = isinstance(zero, gs.Constant) and not np.any(zero.values)
    return guards[0].outputs[0] if is_nan and is_zero and value is weights else weights
