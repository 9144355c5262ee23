"""Where a region ends without a transpose.

- Flatten (or Reshape, Squeeze) to feature vectors: features come in another order, and the weights of the products
  that read them are permuted instead.
- Reshape to (batch, channels, positions) and Transpose to (batch, positions, channels): a Reshape.
- Reshape that parts channels, Transpose, and Reshape that joins them in the new order (ShuffleNet): the same with
  channels last.
- Transpose: the permutation from channels last, none at all if that is what was asked for.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.formats.gemm_function import is_gemm
from deftonnx.formats.packed import padded
from deftonnx.layers.linear import Array, is_standard, stored, stored_as, unused_name
from deftonnx.rewrite.absorb.parameters import integers
from deftonnx.rewrite.channels_last.moves import FINITE, Move
from deftonnx.rewrite.channels_last.region import Region
from deftonnx.rewrite.packed_conv import channels_last

_PAIRED = "deft16q"
"""The format whose codes hold two features each."""
_KEPT = 4


def flatten(region: Region, node: gs.Node) -> None:
    """To (batch, features): channels first, or channels last before permuted weights."""
    x, y = node.inputs[0], node.outputs[0]
    sizes = list(x.shape)[1:]
    if not all(isinstance(size, int) and size > 0 for size in sizes) or not _is_flat(node, int(np.prod(sizes))):
        return
    source, extra = region.filled(x)
    channels, pixels = sizes[0], int(np.prod(sizes[1:]))
    order = np.full((pixels, channels + extra), -1)
    order[:, :channels] = np.arange(channels * pixels).reshape(channels, pixels).T
    order = order.reshape(-1)  # (features,) where each one was, -1: nowhere
    if not extra and np.array_equal(order, np.arange(len(order))):
        _flat(node, source)
        return
    readers = _readers(region, y)
    if readers is None:
        return
    _flat(node, source)
    for user in readers:
        _permute(user, order)
    for tensor in {id(t): t for user in readers for t in user.inputs[:1]}.values():
        tensor.shape = [sizes_of_batch(x), len(order)]
    y.shape = [sizes_of_batch(x), len(order)]


def sizes_of_batch(x: gs.Tensor) -> int | str | None:
    """The first dimension."""
    size: int | str | None = x.shape[0]
    return size


def reshape(region: Region, node: gs.Node) -> None:
    """To feature vectors, or to a sequence of pixels that is transposed next."""
    x, y = node.inputs[0], node.outputs[0]
    if y.shape is not None and len(y.shape) == 3 and _joins_pixels(node) and y not in region.reserved:
        users = list(y.outputs)
        if users and all(user.op == "Transpose" and user.attrs.get("perm") == [0, 2, 1] for user in users):
            target = gs.Constant(unused_name(f"{node.name}/pixels"), np.array([0, -1, x.shape[1]], np.int64))
            for user in users:
                user.op, user.attrs, user.inputs = "Reshape", {}, [region.last(x), target]
        return
    if (last := _shuffle(region, node)) is not None:
        _shuffled(region, node, last)
        return
    flatten(region, node)


def _shuffle(region: Region, node: gs.Node) -> gs.Node | None:
    """The Reshape that ends a shuffle of channels which the Reshape `node` begins."""
    x, at, steps = node.inputs[0], node, []
    for op in ("Transpose", "Reshape"):
        y = at.outputs[0]
        if len(y.outputs) != 1 or y in region.reserved or y.outputs[0].op != op or not is_standard(y.outputs[0]):
            return None
        at = y.outputs[0]
        steps.append(at)
    parted, joined = node.outputs[0].shape, steps[1].outputs[0].shape
    if parted is None or joined is None or len(parted) != len(x.shape) + 1 or len(joined) != len(x.shape):
        return None
    sizes = [*list(x.shape)[1:], *list(parted)[1:], *list(joined)[1:]]
    if not all(isinstance(size, int) for size in sizes) or list(joined)[1:] != list(x.shape)[1:]:
        return None
    whole = list(parted)[3:] == list(x.shape)[2:] and parted[1] * parted[2] == x.shape[1]
    return steps[1] if whole and steps[0].attrs.get("perm") == [0, 2, 1, *range(3, len(parted))] else None


def _shuffled(region: Region, first: gs.Node, last: gs.Node) -> None:
    source, parted, y = region.last(first.inputs[0]), list(first.outputs[0].shape), last.outputs[0]
    name, batch, image = unused_name(f"{first.name}/shuffle"), first.inputs[0].shape[0], parted[3:]
    result = region.outputs(y)
    sizes = [[*image, *parted[1:3]], [*image, parted[2], parted[1]], [*image, y.shape[1]]]
    tensors = [gs.Variable(f"{name}/{i}", source.dtype, [batch, *part]) for i, part in enumerate(sizes[:2])]
    targets = [gs.Constant(f"{name}/target_{i}", np.array([0, *part], np.int64)) for i, part in enumerate(sizes)]
    rank = len(image) + 3
    order = [*range(rank - 2), rank - 1, rank - 2]
    region.graph.nodes += [
        gs.Node("Reshape", f"{name}/part", {}, [source, targets[0]], [tensors[0]]),
        gs.Node("Transpose", f"{name}/move", {"perm": order}, [tensors[0]], [tensors[1]]),
        gs.Node("Reshape", f"{name}/join", {}, [tensors[1], targets[2]], [result]),
    ]


def transpose(region: Region, node: gs.Node) -> None:
    """Channels-first axes are looked up where they are with channels last."""
    x, y = node.inputs[0], node.outputs[0]
    order = channels_last(len(x.shape) - 2)
    perm = [order.index(axis) for axis in node.attrs.get("perm", reversed(range(len(order))))]
    node.inputs, node.attrs["perm"] = [region.last(x)], perm
    if perm == sorted(perm) and y not in region.reserved:
        for user in list(y.outputs):
            user.inputs = [node.inputs[0] if t is y else t for t in user.inputs]


def _is_flat(node: gs.Node, features: int) -> bool:
    """True where `node` makes (batch, features) of (batch, …)."""
    if node.op == "Flatten":
        return bool(node.attrs.get("axis", 1) == 1)
    x = node.inputs[0]
    if node.op == "Squeeze":
        axes = integers(node, "axes", 1)
        return axes is not None and sorted(axis % len(x.shape) for axis in axes) == list(range(2, len(x.shape)))
    target = _target(node)
    if target is None or len(target) != 2:
        return False
    batch = x.shape[0]
    whole = target[1] in (-1, features)
    return target == [-1, features] or (whole and target[0] in (0, *([batch] if isinstance(batch, int) else [])))


def _target(node: gs.Node) -> list[int] | None:
    """The constant target of a Reshape, in which a 0 copies."""
    target = integers(node, "shape", 1)
    return None if target is not None and 0 in target and node.attrs.get("allowzero", 0) else target


def _joins_pixels(node: gs.Node) -> bool:
    """True where a Reshape makes (batch, channels, pixels) of (batch, channels, …)."""
    x, y = node.inputs[0], node.outputs[0]
    target = _target(node)
    if target is not None and len(target) == 3:
        sizes = list(x.shape)[1:]
        channels = isinstance(sizes[0], int) and target[1] in (0, sizes[0])
        pixels = int(np.prod(sizes[1:])) if all(isinstance(size, int) for size in sizes) else None
        batch = target[0] == 0 or (target[0] == x.shape[0] and isinstance(x.shape[0], int))
        return channels and (batch or (target[0] == -1 and target[2] == pixels))
    same = [a == b and a is not None for a, b in zip(list(x.shape)[:2], list(y.shape)[:2], strict=True)]
    return all(same) and isinstance(x.shape[1], int)


def _flat(node: gs.Node, source: gs.Tensor) -> None:
    node.op, node.attrs, node.inputs = "Flatten", {"axis": 1}, [source]


def _readers(region: Region, tensor: gs.Tensor) -> list[gs.Node] | None:
    """The products that read `tensor`, directly or through elementwise functions; None where something else does."""
    if tensor in region.reserved or not tensor.outputs:
        return None
    found: list[gs.Node] = []
    for user in tensor.outputs:
        if is_standard(user) and user.op in FINITE and user.inputs[0] is tensor and len(user.outputs) == 1:
            behind = _readers(region, user.outputs[0])
            if behind is None:
                return None
            found += behind
        elif _multiplies(user, tensor):
            found.append(user)
        else:
            return None
    return found


def _multiplies(node: gs.Node, tensor: gs.Tensor) -> bool:
    """True for a product of `tensor` alone with a weight whose features can be permuted."""
    if sum(t is tensor for t in node.inputs) != 1 or node.inputs[0] is not tensor:
        return False
    if is_gemm(node.domain, node.op):
        dense = len(node.inputs) <= _KEPT or int(np.prod(node.inputs[_KEPT].shape)) == 0
        return dense and node.attrs["format"] != _PAIRED and node.attrs["features"] == node.attrs["K"]
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if not is_standard(node) or not isinstance(weight, gs.Constant) or len(weight.shape) != 2:
        return False
    return node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transA", 0))


def _permute(node: gs.Node, order: Array) -> None:
    """Let feature i of the product's input be what feature order[i] was; -1: one that is ignored."""
    weight = node.inputs[1]
    name = unused_name(f"{weight.name}/permuted_{node.name}")
    if is_gemm(node.domain, node.op):
        K = len(order)
        values = stored(weight)
        codes = values.view(f"u{values.dtype.itemsize}")
        moved = np.zeros((codes.shape[0], padded(K)), codes.dtype)  # the code 0 is the value 0 in every format
        moved[:, :K] = _taken(codes, order, axis=1)
        node.inputs[1] = stored_as(name, moved.view(values.dtype))
        node.attrs["features"] = node.attrs["K"] = K
        return
    axis = 1 if node.op == "Gemm" and node.attrs.get("transB", 0) else 0
    node.inputs[1] = gs.Constant(name, np.ascontiguousarray(_taken(weight.values, order, axis)))


def _taken(values: Array, order: Array, axis: int) -> Array:
    taken = values.take(np.maximum(order, 0), axis=axis)
    index: list[slice | Array] = [slice(None)] * values.ndim
    index[axis] = order < 0
    taken[tuple(index)] = 0
    return taken


LEAVING: dict[str, Move] = {
    "Flatten": flatten,
    "Reshape": reshape,
    "Squeeze": flatten,
    "Transpose": transpose,
}
