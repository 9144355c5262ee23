"""Norms by the root of the mean square, as T5 and Llama have them: x / √(mean(x²) + epsilon) · scale, written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import Array, is_standard
from deftonnx.rewrite.layer_norm import maker, mean_of, number_of, quotient, sum_with_number
from deftonnx.rewrite.reserved import Reserved


@dataclass
class RootMeanSquare:
    """`x` is divided along its last axis, F numbers, and scaled to `y` by `nodes`."""

    x: gs.Tensor
    y: gs.Tensor
    epsilon: float
    scale: Array  # (F,)
    nodes: list[gs.Node]


def root_mean_squares(graph: gs.Graph) -> Iterator[RootMeanSquare]:
    """Those whose parts nothing else reads. Shapes have to be known."""
    reserved = Reserved(graph)
    for node in graph.nodes:
        if node.op == "Mul" and is_standard(node) and (found := _match(node, reserved)) is not None:
            yield found


def _match(node: gs.Node, reserved: Reserved) -> RootMeanSquare | None:
    constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
    if len(constants) != 1:
        return None
    divided = next(t for t in node.inputs if not isinstance(t, gs.Constant))
    division = divided.inputs[0] if len(divided.inputs) == 1 else None
    if division is None or not is_standard(division) or (ends := quotient(division)) is None:
        return None
    x, root = ends
    shifted = sum_with_number(root)
    mean = None if shifted is None else mean_of(shifted[0])
    if shifted is None or mean is None or not _is_square(mean, x) or x.shape is None or x.dtype != np.float32:
        return None
    F, scale = x.shape[-1], constants[0].values
    if scale.size != F or scale.shape[-1] != F or scale.ndim > len(x.shape):
        return None
    nodes = _between(node, x)
    inner = [t for part in nodes[1:] for t in part.outputs]
    if any(t in reserved or any(all(user is not part for part in nodes) for user in t.outputs) for t in inner):
        return None
    return RootMeanSquare(x, node.outputs[0], shifted[1], scale.reshape(-1).astype(np.float32), nodes)


def _is_square(tensor: gs.Tensor, x: gs.Tensor) -> bool:
    power, product = maker(tensor, "Pow"), maker(tensor, "Mul")
    if power is not None:
        return power.inputs[0] is x and number_of(power.inputs[1]) == 2
    return product is not None and all(t is x for t in product.inputs)


def _between(last: gs.Node, x: gs.Tensor) -> list[gs.Node]:
    """`last` and all nodes that lie between `x` and it."""
    nodes, at = [last], 0
    while at < len(nodes):
        for tensor in nodes[at].inputs:
            if tensor is not x:
                nodes += [n for n in tensor.inputs if all(n is not known for known in nodes)]
        at += 1
    return nodes
