"""What gives other values in each run: it is no constant, and results that hold it cannot be compared."""

from __future__ import annotations

import onnx_graphsurgeon as gs

RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def is_random(node: gs.Node) -> bool:
    """True for a node that draws random numbers, also in a body."""
    bodies = (value for value in node.attrs.values() if isinstance(value, gs.Graph))
    return node.op in RANDOM or is_training(node) or any(is_random(inner) for body in bodies for inner in body.nodes)


def is_training(node: gs.Node) -> bool:
    """True for a Dropout that may drop."""
    if node.op != "Dropout" or len(node.inputs) < 3 or not node.inputs[2].name:
        return False
    flag = node.inputs[2]
    maker = flag.inputs[0] if flag.inputs else None
    value = maker.attrs.get("value", flag) if maker is not None and maker.op == "Constant" else flag
    return not (isinstance(value, gs.Constant) and not value.values.any())


def draws_random_numbers(graph: gs.Graph) -> bool:
    """Whether `graph` or a local function of it does."""
    return any(is_random(node) for part in (graph, *graph.functions) for node in part.nodes)
