"""Rule for MultiHeadAttention: heads that nobody reads are dropped, and with them their queries, keys and values."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from deftonnx.rewrite.absorb.channels import Array, ChannelMap

_AXIS, _RANK = 2, 3  # of (batch, length, heads * head size)
_BIAS = 5


def multi_head_attention(node: gs.Node, channels: ChannelMap) -> None:
    """All features of a head stand or fall together, in the query, the key, the value and the output.

    Head sizes stay as they are: ONNX Runtime's fast kernels want one size for queries, keys and values.
    """
    parts = [_heads(node, tensor, channels) for tensor in node.inputs[:3]]
    query, key, value = parts if len(parts) == _RANK else (None, None, None)
    if query is None or key is None or value is None or not _fits(node):
        for tensor in node.inputs:
            channels.fix_all(tensor)
        return
    for tensor in node.inputs[:3]:
        for axis, atoms in channels.axes(tensor).items():
            if axis != _AXIS:
                channels.fix(atoms)
    for tensor in node.inputs[3:]:
        channels.fix_all(tensor)
    first = value[:, 0]
    for part in (query, key, value):
        for column in part.T:
            channels.unite(first, column)
    channels.track(node.outputs[0], _AXIS, value.reshape(-1))

    def edit() -> None:
        node.attrs["num_heads"] = len(channels.alive(first))

    channels.edits.append(edit)


def _heads(node: gs.Node, tensor: gs.Tensor, channels: ChannelMap) -> Array | None:
    """The atoms of the features of a query, key or value, (heads, head size)."""
    atoms = channels.axes(tensor).get(_AXIS)
    if atoms is None or tensor.shape is None or len(tensor.shape) != _RANK or len(atoms) % node.attrs["num_heads"]:
        return None
    return atoms.reshape(node.attrs["num_heads"], -1)


def _fits(node: gs.Node) -> bool:
    """No biases or states of its own, a scale that does not follow the head size, and no mask a head."""
    used = [i for i, tensor in enumerate(node.inputs) if i >= _RANK and tensor.name]
    if any(i != _BIAS for i in used) or len(node.outputs) > 1 or not node.attrs.get("scale"):
        return False
    shape = node.inputs[_BIAS].shape if used else (1, 1)
    return shape is not None and shape[1] == 1
