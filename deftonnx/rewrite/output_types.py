"""Tell ONNX Runtime the type of a DeftGemm's output where it is not the input's.

With the operator library registered, ONNX Runtime takes that type from the residual. A node without one gets the
constant that stands for none, in the type of its output (see deftonnx.formats.gemm_function).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import unused_name
from deftonnx.rewrite.fuse import is_deft_gemm

_KEPT = 4


def tell_output_types(graph: gs.Graph) -> bool:
    """Add the constants to the nodes of `graph` that need them, in place; returns whether there were any."""
    needing = [node for node in graph.nodes if is_deft_gemm(node) and _needs_one(node)]
    for node in needing:
        if len(node.inputs) == _KEPT:
            node.inputs.append(gs.Constant(unused_name(f"{node.name}/kept_blocks"), np.zeros(0, np.int32)))
        zero = np.zeros((), node.outputs[0].dtype)
        node.inputs.append(gs.Constant(unused_name(f"{node.name}/no_residual"), zero))
    return bool(needing)


def _needs_one(node: gs.Node) -> bool:
    return len(node.inputs) <= _KEPT + 1 and node.inputs[0].dtype != node.outputs[0].dtype
