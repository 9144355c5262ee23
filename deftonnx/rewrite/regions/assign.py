"""Which nodes of a graph compute in 16 bits, and why the others do not.

A node is taken if it has a kernel in the type (see kernels.py) and its activations fit it: float16 if the largest
magnitudes seen on data leave room, else bfloat16. Neighbours of one type are a region. A region pays if it holds a
product or a convolution; others would only trade one kernel for casts and go back to float32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers import Refusal
from deftonnx.rewrite.narrow import LARGEST, MOVING, SMALLEST
from deftonnx.rewrite.regions.kernels import BFLOAT16, FLOAT16, Kernel, kernel

HALF_LIMIT = 65504.0
SMALLEST_NORMAL = 2.0**-14
"""Below it float16 loses digits: an epsilon of 1e-12 would be zero."""
_BIAS = {"MultiHeadAttention": 5, "DeftAttention": 1}
"""Where attention has what is added to its scores."""
_DIVISORS = {"Div": 1, "Reciprocal": 0}
"""Which input is divided by."""
_ADDS_FIRST = "SkipSimplifiedLayerNormalization"
_NOTHING_TO_NARROW = "it has no float32 activations"
KINDS = (FLOAT16, BFLOAT16)


@dataclass
class Assignment:
    """The type of each node that computes in 16 bits, by its identity; inputs that are masks, as pairs of identities of
    node and tensor; and the reasons of the heavy nodes that stay in float32."""

    kinds: dict[int, str] = field(default_factory=dict)
    masks: set[tuple[int, int]] = field(default_factory=set)
    refusals: list[Refusal] = field(default_factory=list)


def assign(graph: gs.Graph, ranges: dict[str, float], kinds: Iterable[str] = KINDS) -> Assignment:
    """Choose among `kinds`, the first that serves a node.

    `ranges` holds the largest magnitude of tensors on data; one not in it is trusted.
    """
    found = Assignment()
    for node in graph.nodes:
        outcome = _kind(node, ranges, kinds)
        if outcome in KINDS:
            found.kinds[id(node)] = outcome
            if (mask := mask_of(node, ranges)) is not None:
                found.masks.add((id(node), id(mask)))
        elif _is_heavy(node) and outcome != _NOTHING_TO_NARROW:
            found.refusals.append(Refusal(node.name, node.op, outcome))
    for region in _regions(graph, found.kinds):
        if not any(map(_is_heavy, region)):
            for node in region:
                del found.kinds[id(node)]
    return found


def changing_inputs(node: gs.Node, spec: Kernel) -> Iterator[int]:
    """The positions of float32 inputs that are 16 bits wide when `node` is."""
    for i, tensor in enumerate(node.inputs):
        if (spec.inputs is None or i in spec.inputs) and is_float(tensor):
            yield i


def changing_outputs(node: gs.Node, spec: Kernel) -> Iterator[int]:
    """The positions of float32 outputs that are 16 bits wide when `node` is."""
    for i, tensor in enumerate(node.outputs):
        if (spec.outputs is None or i in spec.outputs) and is_float(tensor):
            yield i


def is_float(tensor: gs.Tensor) -> bool:
    """True for float32."""
    return bool(tensor.name) and tensor.dtype is not None and tensor.dtype == np.float32


def mask_of(node: gs.Node, ranges: dict[str, float]) -> gs.Tensor | None:
    """What `node` only adds to the input of a Softmax to mask it: too large for float16, the other summand not."""
    if (at := _BIAS.get(node.op)) is not None:
        bias = node.inputs[at] if len(node.inputs) > at else None
        return bias if bias is not None and _reach(bias, ranges) > LARGEST[FLOAT16] else None
    users = node.outputs[0].outputs
    if node.op != "Add" or not users or any(user.op != "Softmax" for user in users):
        return None
    large = [t for t in node.inputs if _reach(t, ranges) > LARGEST[FLOAT16]]
    return large[0] if len(large) == 1 else None


def _is_heavy(node: gs.Node) -> bool:
    spec = kernel(node)
    return spec is not None and spec.heavy


def _kind(node: gs.Node, ranges: dict[str, float], kinds: Iterable[str]) -> str:
    """The type of `node`, or the reason why it stays in float32."""
    spec = kernel(node)
    if spec is None:
        return "no 16-bit kernel"
    tensors = [node.inputs[i] for i in changing_inputs(node, spec)]
    outputs = [node.outputs[i] for i in changing_outputs(node, spec)]
    if not outputs or not tensors:
        return _NOTHING_TO_NARROW
    if _unknown(node, spec):
        return "the types of its tensors are not known"
    reasons = []
    for kind in kinds:
        if not spec.takes(kind):
            reasons.append(f"there is no {kind} kernel")
            continue
        if kind == FLOAT16 and _divides_by_little(node):
            reasons.append("what keeps its divisor from zero is zero in float16")
            continue
        outside = next((t for t in (*tensors, *outputs) if not _fits(node, t, kind, ranges)), None)
        if outside is None:
            return kind
        reasons.append(f"'{outside.name}' reaches {_reach(outside, ranges):.3g}, which {kind} does not hold")
    return ", and ".join(reasons)


def _divides_by_little(node: gs.Node) -> bool:
    """Whether `node` divides by what a number keeps from zero that float16 does not hold: |x| limited or added to."""
    if node.op not in _DIVISORS:
        return False
    divisor, least = node.inputs[_DIVISORS[node.op]], SMALLEST_NORMAL
    while len(divisor.inputs) == 1 and divisor.inputs[0].op in MOVING | {"Expand", "Tile", "Sqrt"}:
        least = least**2 if divisor.inputs[0].op == "Sqrt" else least
        divisor = divisor.inputs[0].inputs[0]
    if len(divisor.inputs) != 1 or divisor.inputs[0].op not in ("Clip", "Max", "Add"):
        return False
    numbers = [t.values for t in divisor.inputs[0].inputs if isinstance(t, gs.Constant) and t.values.size == 1]
    return any(0 < abs(float(number.reshape(-1)[0])) < least for number in numbers)


def _unknown(node: gs.Node, spec: Kernel) -> bool:
    positions = range(len(node.inputs)) if spec.inputs is None else spec.inputs
    read = [node.inputs[i] for i in positions if i < len(node.inputs)]
    return any(t.name and t.dtype is None for t in (*read, *node.outputs))


def _reach(tensor: gs.Tensor, ranges: dict[str, float]) -> float:
    if not isinstance(tensor, gs.Constant):
        return ranges.get(tensor.name, 1.0)
    return float(np.abs(tensor.values).max()) if tensor.values.size else 0.0


def _fits(node: gs.Node, tensor: gs.Tensor, kind: str, ranges: dict[str, float]) -> bool:
    makers = [node] if tensor is node.outputs[0] else [node, *tensor.inputs]
    if any(
        (mask := mask_of(maker, ranges)) is not None and any(tensor is t for t in (mask, maker.outputs[0]))
        for maker in makers
    ):
        return True  # only what is masked is as large
    reach = _reach(tensor, ranges)
    if node.op == _ADDS_FIRST and node.inputs[0] is node.inputs[1]:
        reach *= 2  # the sum, which no range tells
    if isinstance(tensor, gs.Constant):
        least = SMALLEST_NORMAL if tensor.values.size == 1 else 0.0
        return kind != FLOAT16 or reach == 0 or least <= reach <= HALF_LIMIT
    return reach == 0 or SMALLEST[kind] <= reach <= LARGEST[kind]


def _regions(graph: gs.Graph, kinds: dict[int, str]) -> Iterator[list[gs.Node]]:
    """Connected nodes of one type."""
    seen: set[int] = set()
    for start in graph.nodes:
        if id(start) in seen or id(start) not in kinds:
            continue
        seen.add(id(start))
        region, queue = [], deque([start])
        while queue:
            node = queue.popleft()
            region.append(node)
            for other in _neighbours(node):
                if id(other) not in seen and kinds.get(id(other)) == kinds[id(start)]:
                    seen.add(id(other))
                    queue.append(other)
        yield region


def _neighbours(node: gs.Node) -> Iterator[gs.Node]:
    for tensor in node.inputs:
        if is_float(tensor):
            yield from tensor.inputs
    for tensor in node.outputs:
        if is_float(tensor):
            yield from tensor.outputs
