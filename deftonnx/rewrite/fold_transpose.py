"""Transpose weights that an exporter left to be transposed at run time, as torch's newer one does for every Linear.

General folding leaves constants of more than FOLD_LIMIT alone, because a result may be larger than what it is made of.
A transpose is not, unless the constant has other readers and so would be stored twice, as a table of embeddings that
scores the next token too: `twice` allows that, where weights are packed to half their size.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.reserved import Reserved


def fold_transpose(graph: gs.Graph, twice: bool = False) -> bool:
    """Replace every Transpose of a constant that nothing else reads, or of any, by its result. True if anything
    changed."""
    changed = False
    reserved = Reserved(graph)
    for node in list(graph.nodes):
        if node.op != "Transpose" or not is_standard(node):
            continue
        source, result = node.inputs[0], node.outputs[0]
        if not isinstance(source, gs.Constant) or source in reserved or result in reserved:
            continue
        if len(source.outputs) > 1 and not twice:
            continue
        values = np.ascontiguousarray(source.values.transpose(node.attrs.get("perm")))
        folded = gs.Constant(unused_name(result.name), values)
        for user in list(result.outputs):
            user.inputs = [folded if t is result else t for t in user.inputs]
        node.inputs.clear()
        node.outputs.clear()
        graph.nodes.remove(node)
        changed = True
    return changed
