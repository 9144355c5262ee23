"""Rotary embeddings as exporters write them: x · cosines + [−x₂, x₁] · sines, x₁ and x₂ halves of a head's features.

Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.attention.layout import Chain, Run, backwards, value_in
from deftonnx.rewrite.layer_norm import maker

_AXES = 4


@dataclass
class Rotary:
    """`y` is `x` (batch, heads, length, head size) turned; `cosines` and `sines` have 1 or batch samples and 1 head."""

    x: gs.Tensor
    y: gs.Tensor
    cosines: gs.Tensor
    sines: gs.Tensor
    halves: tuple[Chain, Chain]

    def angles(self) -> tuple[object, ...]:
        """What is equal for all that turn alike."""
        turns = (self.cosines, self.sines)
        return tuple(t.values.tobytes() if isinstance(t, gs.Constant) else id(t) for t in turns)

    def holds(self, run: Run) -> bool:
        """Whether what was seen in one run is that."""
        shapes = run.shapes
        shape = shapes.get(self.x.name, ())
        if len(shape) != _AXES or shape[-1] % 2 or shapes.get(self.y.name) != shape:
            return False
        batch, _, length, size = shape
        for turns in (self.cosines, self.sines):
            seen = value_in(run, turns)
            if seen is None or seen.shape not in ((1, 1, length, size), (batch, 1, length, size)):
                return False
            if not np.array_equal(seen[..., : size // 2], seen[..., size // 2 :]):
                return False
        wanted = np.split(np.arange(int(np.prod(shape))).reshape(shape), 2, axis=-1)
        positions = [half.positions(shapes) for half in self.halves]
        return all(p is not None and np.array_equal(p, w) for p, w in zip(positions, wanted, strict=True))


def match(y: gs.Tensor) -> Rotary | None:
    """The embeddings that make `y`, as far as its operators tell."""
    total = maker(y, "Add")
    if total is None:
        return None
    for plain, other in _both_ways(total):
        for rotated, sines in _both_ways(maker(other, "Mul")):
            joined = maker(rotated, "Concat")
            if joined is None or len(joined.inputs) != 2 or joined.attrs["axis"] not in (-1, _AXES - 1):
                continue
            negated = maker(joined.inputs[0], "Neg")
            if negated is None:
                continue
            for x, cosines in _both_ways(maker(plain, "Mul")):
                second, first = (_part(t, x) for t in (negated.inputs[0], joined.inputs[1]))
                if first is not None and second is not None:
                    return Rotary(x, y, cosines, sines, (first, second))
    return None


def table(graph: gs.Graph, rotary: Rotary, size: int) -> gs.Variable:
    """Cosines and sines as DeftAttention takes them: (length or batch * length, head size)."""
    name = unused_name(f"{rotary.cosines.name}/rotary")
    bounds = [np.array([0]), np.array([size // 2]), np.array([-1])]
    parts: list[gs.Variable] = []
    for turns in (rotary.cosines, rotary.sines):
        half = gs.Variable(f"{name}/half_{len(parts)}", np.float32)
        inputs = [turns, *(gs.Constant(f"{half.name}/{i}", bound) for i, bound in enumerate(bounds))]
        graph.nodes.append(gs.Node("Slice", half.name, {}, inputs, [half]))
        parts.append(half)
    joined, result = gs.Variable(f"{name}/joined", np.float32), gs.Variable(name, np.float32, [None, size])
    shape = gs.Constant(f"{name}/shape", np.array([-1, size]))
    graph.nodes.append(gs.Node("Concat", joined.name, {"axis": -1}, parts, [joined]))
    graph.nodes.append(gs.Node("Reshape", name, {}, [joined, shape], [result]))
    return result


def _both_ways(node: gs.Node | None) -> list[tuple[gs.Tensor, gs.Tensor]]:
    """The two inputs of `node`, in either order."""
    if node is None:
        return []
    first, second = node.inputs
    return [(first, second), (second, first)]


def _part(tensor: gs.Tensor, x: gs.Tensor) -> Chain | None:
    """How `tensor` is taken out of `x`, if one node does."""
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if node is None or not is_standard(node) or node.op not in ("Slice", "Split") or node.inputs[0] is not x:
        return None
    return Chain(x, tensor, backwards(tensor, scaling=False).nodes[-1:])
