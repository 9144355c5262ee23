"""Tell ONNX Runtime the type of a DeftGemm's output where it is not the input's.

With the operator library registered, ONNX Runtime takes that type from the residual. A node without one gets the
constant that stands for none, in the type of its output (see deftonnx.formats.gemm_function).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import stored_as, unused_name
from deftonnx.rewrite.fuse import is_deft_gemm

_KEPT, _RESIDUAL = 4, 5


def tell_output_types(graph: gs.Graph) -> None:
    """Add the constants to the nodes of `graph` that need them, and take them from the others, in place."""
    for node in graph.nodes:
        if not is_deft_gemm(node) or has_residual(node):
            continue
        node.inputs = node.inputs[:_RESIDUAL]
        if node.inputs[0].dtype != node.outputs[0].dtype:
            tell_output_type(node)


def has_residual(node: gs.Node) -> bool:
    """True where a DeftGemm adds a tensor to its product."""
    return len(node.inputs) > _RESIDUAL and not isinstance(node.inputs[_RESIDUAL], gs.Constant)


def tell_output_type(node: gs.Node) -> None:
    """Give a DeftGemm without a residual the constant that stands for none, in the type of its output."""
    if len(node.inputs) == _KEPT:
        node.inputs.append(gs.Constant(unused_name(f"{node.name}/kept_blocks"), np.zeros(0, np.int32)))
    kind = node.outputs[0].dtype  # onnx's number where NumPy has no such type
    kind = onnx.helper.tensor_dtype_to_np_dtype(kind) if isinstance(kind, int) else kind
    zero = stored_as(unused_name(f"{node.name}/no_residual"), np.zeros((), kind))
    node.inputs = [*node.inputs[:_RESIDUAL], zero]
