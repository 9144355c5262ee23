"""The tensors of a graph that a pass must leave as they are."""

from __future__ import annotations

import onnx_graphsurgeon as gs


class Reserved:
    """The tensors of a graph that must stay: what the bodies of If, Loop and Scan read, and its `outputs`."""

    def __init__(self, graph: gs.Graph, outputs: bool = True) -> None:
        bodies = list(graph.subgraphs(recursive=True))
        self.names = {t.name for t in graph.outputs if outputs}
        self.names |= {t.name for body in bodies for node in body.nodes for t in node.inputs}
        self.names |= {t.name for body in bodies for t in body.outputs}

    def __contains__(self, tensor: gs.Tensor) -> bool:
        return tensor.name in self.names
