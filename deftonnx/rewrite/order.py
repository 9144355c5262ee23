"""Nodes in an order in which each comes behind those that it reads."""

from __future__ import annotations

import onnx_graphsurgeon as gs


def sort_nodes(graph: gs.Graph) -> None:
    """Sort the nodes of `graph` and of the bodies of If, Loop and Scan, in place.

    Local functions stay as they are: onnx-graphsurgeon 0.6 recurses without end over those of a graph with such bodies.
    """
    graph.toposort(recurse_functions=False, mode="nodes")
