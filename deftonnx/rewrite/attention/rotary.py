"""Rotary embeddings as exporters write them: x · cosines + [−x₂, x₁] · sines, x₁ and x₂ halves of a head's features, or
of the first of them where the others stay as they are.

Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.attention.layout import Chain, Run, value_in
from deftonnx.rewrite.layer_norm import maker

_AXES = 4
_HALVES = 2


@dataclass
class Rotary:
    """`y` is `x` (batch, heads, length, head size) turned; `cosines` and `sines` have 1 or batch samples, 1 head, and
    as many features as are turned. `parts` are the halves of those in `x`, and the others, if any."""

    x: gs.Tensor
    y: gs.Tensor
    cosines: gs.Tensor
    sines: gs.Tensor
    parts: tuple[Chain, ...]

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
        turned = self.turned(run)
        if turned % 2 or (turned != size if len(self.parts) == _HALVES else turned > size):
            return False
        for turns in (self.cosines, self.sines):
            seen = value_in(run, turns)
            if seen is None or seen.shape not in ((1, 1, length, turned), (batch, 1, length, turned)):
                return False
            if not np.array_equal(seen[..., : turned // 2], seen[..., turned // 2 :]):
                return False
        wanted = np.split(np.arange(int(np.prod(shape))).reshape(shape), [turned // 2, turned], axis=-1)
        positions = [part.positions(shapes) for part in self.parts]
        return all(p is not None and np.array_equal(p, w) for p, w in zip(positions, wanted, strict=False))

    def turned(self, run: Run) -> int:
        """How many features of a head are turned; 0 where that was not seen."""
        seen = value_in(run, self.cosines)
        return 0 if seen is None or seen.ndim == 0 else int(seen.shape[-1])


def match(y: gs.Tensor) -> Rotary | None:
    """The embeddings that make `y`, as far as its operators tell."""
    joined = maker(y, "Concat")
    if joined is None:
        return _match_whole(y)
    if len(joined.inputs) != 2 or joined.attrs["axis"] not in (-1, _AXES - 1):
        return None
    turned, rest = _match_whole(joined.inputs[0]), _source(joined.inputs[1])
    if turned is None or rest is None or (turned.x is not rest and _source(turned.x) is not rest):
        return None
    chains = (*(part.end for part in turned.parts), joined.inputs[1])
    parts = tuple(Chain(rest, end, _nodes_from(rest, end)) for end in chains)
    return Rotary(rest, y, turned.cosines, turned.sines, parts)


def _match_whole(y: gs.Tensor) -> Rotary | None:
    """The embeddings that turn all features of `y`."""
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


def order(turned: int, size: int) -> list[int]:
    """Features of a head such that i and i + size / 2 are turned together, in which others are by no angle."""
    still = turned + (size - turned) // 2
    return [*range(turned // 2), *range(turned, still), *range(turned // 2, turned), *range(still, size)]


def table(graph: gs.Graph, rotary: Rotary, turned: int, size: int, stem: str) -> gs.Variable:
    """Cosines and sines as DeftAttention takes them: (length or batch * length, head size), features in `order`."""
    name = unused_name(stem)
    bounds = [np.array([0]), np.array([turned // 2]), np.array([-1])]
    parts: list[gs.Variable] = []
    for turns, still in ((rotary.cosines, 1.0), (rotary.sines, 0.0)):
        half = gs.Variable(f"{name}/half_{len(parts)}", np.float32)
        inputs = [turns, *(gs.Constant(f"{half.name}/{i}", bound) for i, bound in enumerate(bounds))]
        graph.nodes.append(gs.Node("Slice", half.name, {}, inputs, [half]))
        if turned < size:
            whole = gs.Variable(f"{half.name}/whole", np.float32)
            pads = np.array([0] * (2 * _AXES - 1) + [(size - turned) // 2])
            constants = [
                gs.Constant(f"{whole.name}/pads", pads),
                gs.Constant(f"{whole.name}/still", np.array(still, np.float32)),
            ]
            graph.nodes.append(gs.Node("Pad", whole.name, {}, [half, *constants], [whole]))
            half = whole
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
    return Chain(x, tensor, _nodes_from(x, tensor)) if _source(tensor) is x else None


def _source(tensor: gs.Tensor) -> gs.Tensor | None:
    """What `tensor` is taken out of, if one node does, wherever its bounds are known."""
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if node is None or not is_standard(node) or node.op not in ("Slice", "Split"):
        return None
    return node.inputs[0] if all(isinstance(t, gs.Constant) for t in node.inputs[1:] if t.name) else None


def _nodes_from(source: gs.Tensor, tensor: gs.Tensor) -> list[gs.Node]:
    """The nodes by which `tensor` is taken out of `source`."""
    nodes: list[gs.Node] = []
    while tensor is not source:
        nodes.insert(0, tensor.inputs[0])
        tensor = tensor.inputs[0].inputs[0]
    return nodes
