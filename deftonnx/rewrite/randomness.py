"""What gives other values in each run: it is no constant, and results that hold it cannot be compared."""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs

RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def drawing(graph: gs.Graph) -> Callable[[gs.Node], bool]:
    """What says whether a node of `graph` draws random numbers, also in a body or a local function."""
    functions: set[tuple[str | None, str]] = set()

    def draws(node: gs.Node) -> bool:
        bodies = (value for value in node.attrs.values() if isinstance(value, gs.Graph))
        itself = node.op in RANDOM or is_training(node) or (node.domain, node.op) in functions
        return itself or any(draws(inner) for body in bodies for inner in body.nodes)

    for _ in graph.functions:  # one may call another
        functions |= {(f.domain, f.name) for f in graph.functions if any(map(draws, f.nodes))}
    return draws


def is_training(node: gs.Node) -> bool:
    """True for a Dropout that may drop."""
    if node.op != "Dropout" or len(node.inputs) < 3 or not node.inputs[2].name:
        return False
    flag = node.inputs[2]
    maker = flag.inputs[0] if flag.inputs else None
    value = maker.attrs.get("value", flag) if maker is not None and maker.op == "Constant" else flag
    return not (isinstance(value, gs.Constant) and not value.values.any())


def draws_random_numbers(graph: gs.Graph) -> bool:
    """Whether any node of `graph` does."""
    return any(map(drawing(graph), graph.nodes))
