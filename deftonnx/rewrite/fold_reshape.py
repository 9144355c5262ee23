"""Give a Reshape whose target is put together at run time a constant target, where 0 and −1 can say the same.

Exporters write `x.view(x.size(0), -1)` as Shape → Gather → Unsqueeze → Concat → Reshape. A 0 copies the dimension.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import is_standard, unused_name

MADE_UP = "unk__"
"""How shape inference begins the names of sizes that it knows nothing of."""


def fold_reshape(graph: gs.Graph) -> bool:
    """Make the targets constant; the nodes that computed them are left to a clean-up. True if anything changed."""
    changed = False
    for node in graph.nodes:
        if node.op != "Reshape" or not is_standard(node) or len(node.inputs) < 2:
            continue
        target = None if isinstance(node.inputs[1], gs.Constant) else _entries(node.inputs[1], node.inputs[0])
        if target is None or target.count(-1) > 1:
            continue
        node.inputs[1] = gs.Constant(unused_name(f"{node.name}/target"), np.array(target, dtype=np.int64))
        node.attrs.pop("allowzero", None)  # a zero stands for a size of the input
        changed = True
    if changed:
        graph.cleanup(remove_unused_graph_inputs=False)
    return changed


def _entries(target: gs.Tensor, x: gs.Tensor) -> list[int] | None:
    """The entries of a Concat as a constant target of a Reshape of `x`, or None."""
    concat = _producer(target, "Concat")
    if concat is None:
        return None
    result: list[int] = []
    for part in concat.inputs:
        if isinstance(part, gs.Constant):
            values = [int(v) for v in part.values.reshape(-1)]
            if 0 in values:
                return None
            result += values
        elif _is_dimension(part, x, len(result)):
            result.append(0)
        else:
            return None
    return result


def _is_dimension(part: gs.Tensor, x: gs.Tensor, axis: int) -> bool:
    """True where `part` is a vector of one entry: dimension `axis` of `x`, or one of the same name."""
    unsqueeze = _producer(part, "Unsqueeze")
    gather = _producer(unsqueeze.inputs[0] if unsqueeze else part, "Gather")
    if gather is None:
        shape = _producer(part, "Shape")
        bounds = None if shape is None else (shape.attrs.get("start", 0), shape.attrs.get("end"))
        return bounds is not None and bounds[1] == bounds[0] + 1 and _is_same(shape, bounds[0], x, axis)
    if not isinstance(gather.inputs[1], gs.Constant):
        return False
    index = gather.inputs[1].values
    if index.ndim != (0 if unsqueeze else 1) or index.size != 1:
        return False
    shape = _producer(gather.inputs[0], "Shape")
    return shape is not None and not shape.attrs and _is_same(shape, int(index.reshape(-1)[0]), x, axis)


def _is_same(shape: gs.Node | None, index: int, x: gs.Tensor, axis: int) -> bool:
    """True where entry `index` of what `shape` makes is dimension `axis` of `x`."""
    assert shape is not None
    tensor = shape.inputs[0]
    if tensor is x:
        return index == axis
    if tensor.shape is None or x.shape is None or not 0 <= index < len(tensor.shape) or axis >= len(x.shape):
        return False
    name = x.shape[axis]
    return isinstance(name, str) and not name.startswith(MADE_UP) and tensor.shape[index] == name


def _producer(tensor: gs.Tensor, op: str) -> gs.Node | None:
    nodes = tensor.inputs
    return nodes[0] if len(nodes) == 1 and nodes[0].op == op and is_standard(nodes[0]) else None
