"""Rules for operators that move positions about: Concat, Split, Slice, Gather, Transpose, Reshape, Flatten …"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import replace_constant, set_constant, unused_name
from deftonnx.rewrite.absorb.channels import Array, ChannelMap, is_identity
from deftonnx.rewrite.absorb.parameters import integers, store_integers


def concat(node: gs.Node, channels: ChannelMap) -> None:
    """Along the joined axis the operands' atoms lie end to end; along the others they stand or fall together."""
    shapes = [t.shape for t in node.inputs]
    if not any(channels.axes(t) for t in node.inputs):
        return
    if any(shape is None for shape in shapes):
        for t in node.inputs:
            channels.fix_all(t)
        return
    joined = node.attrs["axis"] % len(shapes[0])
    for axis in {axis for t in node.inputs for axis in channels.axes(t)}:
        parts = [channels.axes(t).get(axis) for t in node.inputs]
        if axis == joined:
            _join(node, channels, axis, parts)
            continue
        tracked = [p for p in parts if p is not None]
        for other in tracked[1:]:
            channels.unite(tracked[0], other)
        if len(tracked) < len(parts):
            channels.fix(tracked[0])
        channels.track(node.outputs[0], axis, tracked[0])


def _join(node: gs.Node, channels: ChannelMap, axis: int, parts: list[Array | None]) -> None:
    lengths = [t.shape[axis] for t in node.inputs]
    if not all(isinstance(n, int) for n in lengths):
        for part in parts:
            if part is not None:
                channels.fix(part)
        return
    atoms = []
    for i, (part, t) in enumerate(zip(parts, node.inputs, strict=True)):
        if part is None:
            part = channels.fresh(lengths[i])
            if isinstance(t, gs.Constant):
                channels.edit_constant(node, i, axis, part)
            else:
                channels.fix(part)
        atoms.append(part)
    channels.track(node.outputs[0], axis, np.concatenate(atoms))


def split(node: gs.Node, channels: ChannelMap) -> None:
    """Along the split axis each output takes its share of the atoms."""
    x = node.inputs[0]
    for axis, atoms in channels.axes(x).items():
        along = node.attrs.get("axis", 0) % len(x.shape)
        if axis != along:
            for output in node.outputs:
                channels.track(output, axis, atoms)
            continue
        sizes = integers(node, "split", 1)
        if sizes is None and len(node.inputs) > 1 and node.inputs[1].name:
            channels.fix(atoms)
            continue
        share = -(-len(atoms) // len(node.outputs))
        ends = np.cumsum(sizes) if sizes else np.arange(1, len(node.outputs)) * share
        parts = np.split(atoms, ends[: len(node.outputs) - 1])
        for output, part in zip(node.outputs, parts, strict=True):
            channels.track(output, axis, part)

        def edit(parts: list[Array] = parts) -> None:
            lengths = [len(channels.alive(part)) for part in parts]
            if lengths == [len(part) for part in parts]:
                return
            node.attrs.pop("num_outputs", None)
            if channels.opset < 13:
                node.attrs["split"] = lengths
            else:
                set_constant(node, 1, _integer_constant(node, "split", lengths))

        channels.edits.append(edit)


def slice_(node: gs.Node, channels: ChannelMap) -> None:
    """A contiguous slice of an axis takes those atoms; axes that are not sliced pass through."""
    x, y = node.inputs[0], node.outputs[0]
    if not channels.axes(x):
        return
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    axes = integers(node, "axes", 3)
    steps = integers(node, "steps", 4)
    dynamic = any(not isinstance(t, gs.Constant) for t in node.inputs[1:] if t.name)
    for axis, atoms in channels.axes(x).items():
        if starts is None or ends is None or dynamic:
            channels.fix(atoms)
            continue
        over = [a % len(x.shape) for a in (axes if axes is not None else range(len(starts)))]
        if axis not in over:
            channels.track(y, axis, atoms)
            continue
        at = over.index(axis)
        if steps is not None and steps[at] != 1:
            channels.fix(atoms)
            continue
        first, last, _ = slice(starts[at], ends[at]).indices(len(atoms))
        part = atoms[first:last]
        channels.track(y, axis, part)

        def edit(at: int = at, head: Array = atoms[:first], part: Array = part, whole: Array = atoms) -> None:
            if is_identity(channels.alive(whole), len(whole)):
                return
            begin = len(channels.alive(head))
            for name, index, value in (("starts", 1, begin), ("ends", 2, begin + len(channels.alive(part)))):
                values = integers(node, name, index)
                assert values is not None
                values[at] = value
                store_integers(node, name, index, values)

        channels.edits.append(edit)


def gather(node: gs.Node, channels: ChannelMap) -> None:
    """Constant indices pick atoms; axes that are not indexed pass through."""
    x, index = node.inputs[:2]
    channels.fix_all(index)
    for axis, atoms in channels.axes(x).items():
        along = node.attrs.get("axis", 0) % len(x.shape)
        if index.shape is None:
            channels.fix(atoms)
        elif axis != along:
            shift = len(index.shape) - 1 if axis > along else 0
            channels.track(node.outputs[0], axis + shift, atoms)
        elif not isinstance(index, gs.Constant) or len(index.shape) != 1:
            channels.fix(atoms)
        else:
            picked = atoms[index.values]
            channels.track(node.outputs[0], axis, picked)
            channels.edits.append(partial(_reindex, node, channels, atoms, picked))


def _reindex(node: gs.Node, channels: ChannelMap, atoms: Array, picked: Array) -> None:
    alive, stay = channels.alive(atoms), channels.alive(picked)
    if is_identity(alive, len(atoms)) and is_identity(stay, len(picked)):
        return
    place = np.zeros(len(atoms), dtype=np.int64)
    place[alive] = np.arange(len(alive))
    old = node.inputs[1].values
    replace_constant(node, 1, place[old[stay]].astype(old.dtype))


def transpose(node: gs.Node, channels: ChannelMap) -> None:
    """Axes move."""
    x = node.inputs[0]
    for axis, atoms in channels.axes(x).items():
        order = node.attrs.get("perm") or list(range(len(x.shape)))[::-1]
        channels.track(node.outputs[0], list(order).index(axis), atoms)


def squeeze(node: gs.Node, channels: ChannelMap) -> None:
    """Squeeze and Unsqueeze with constant axes: tracked axes move by the ones removed or added before them."""
    x, y = node.inputs[0], node.outputs[0]
    axes = integers(node, "axes", 1)
    for axis, atoms in channels.axes(x).items():
        if axes is None:
            channels.fix(atoms)
            continue
        if node.op == "Squeeze":
            gone = {a % len(x.shape) for a in axes}
            left = [a for a in range(len(x.shape)) if a not in gone]
        else:
            added = {a % (len(x.shape) + len(axes)) for a in axes}
            left = [a for a in range(len(x.shape) + len(axes)) if a not in added]
        if node.op == "Unsqueeze":
            channels.track(y, left[axis], atoms)
        elif axis in left:
            channels.track(y, left.index(axis), atoms)
        else:
            channels.fix(atoms)


def flatten(node: gs.Node, channels: ChannelMap) -> None:
    """Channels and their pixels become one axis."""
    x = node.inputs[0]
    for axis, atoms in channels.axes(x).items():
        first = node.attrs.get("axis", 1)
        first += len(x.shape) if first < 0 else 0
        inner = x.shape[first:]
        if axis < first or not all(isinstance(d, int) for d in inner) or len(channels.axes(x)) > 1:
            channels.fix(atoms)
        else:
            channels.track(node.outputs[0], 1, _merged(atoms, inner, axis - first))


def reshape(node: gs.Node, channels: ChannelMap) -> None:
    """Axes that stay, or that merge with others of known length, keep their atoms; an axis cut in parts is fixed."""
    x, y = node.inputs[0], node.outputs[0]
    for axis, atoms in channels.axes(x).items():
        target = _target_shape(node, x, y)
        found = None if target is None or len(channels.axes(x)) > 1 else _follow(axis, x.shape, y.shape)
        if found is None:
            channels.fix(atoms)
            continue
        out_axis, inner, place = found
        merged = _merged(atoms, inner, place)
        if target and axis != out_axis:  # a 0 would copy another axis's length here, or this one's elsewhere
            lengths = {axis: len(atoms), out_axis: len(merged)}
            target = [lengths.get(i, 0) if size == 0 else size for i, size in enumerate(target)]
        channels.track(y, out_axis, merged)

        def edit(target: list[int] = target or [], out_axis: int = out_axis, merged: Array = merged) -> None:
            length = len(channels.alive(merged))
            if length == len(merged):
                return
            if target[out_axis] > 0:
                target[out_axis] = length
            if "shape" in node.attrs:
                node.attrs["shape"] = target
            else:
                node.inputs[1] = _integer_constant(node, "shape", target)

        channels.edits.append(edit)


def _target_shape(node: gs.Node, x: gs.Tensor, y: gs.Tensor) -> list[int] | None:
    """The shape a Reshape asks for, written so that its first dimension may vary; None where it is not known."""
    if x.shape is None or y.shape is None or node.attrs.get("allowzero", 0):
        return None
    target = integers(node, "shape", 1)
    if target is not None:
        return target
    static = all(isinstance(d, int) for d in y.shape[1:])
    if static and x.shape and y.shape and x.shape[0] is not None and x.shape[0] == y.shape[0]:
        return [0, *y.shape[1:]]
    return None


def _follow(axis: int, before: list[Any], after: list[Any]) -> tuple[int, list[int], int] | None:
    """Where `axis` goes: the output axis, the lengths of the axes merged into it, and its place among them."""
    behind = len(before) - axis
    if behind <= len(after) and before[axis:] == after[-behind:] and all(isinstance(d, int) for d in before[axis:]):
        return len(after) - behind, [before[axis]], 0
    start = 0
    while start < min(len(before), len(after), axis) and _same(start, before, after):
        start += 1
    source, result = before[start:], after[start:]
    if not all(isinstance(d, int) for d in source):
        return None
    i = 0
    for j, length in enumerate(result):
        taken: list[int] = []
        if length == 1 and i < len(source) and source[i] != 1:
            continue
        while i < len(source) and (int(np.prod(taken)) != length or not taken):
            taken.append(source[i])
            i += 1
            if isinstance(length, int) and int(np.prod(taken)) > length:
                return None
        # trailing ones belong to the axis before them
        while j == len(result) - 1 and i < len(source) and source[i] == 1:
            taken.append(1)
            i += 1
        if isinstance(length, int) and int(np.prod(taken)) != length:
            return None
        place = axis - start - (i - len(taken))
        if 0 <= place < len(taken):
            return start + j, taken, place
    return None


def _same(axis: int, before: list[Any], after: list[Any]) -> bool:
    """True where a leading dimension is untouched: equal, or unknown with the same number of elements behind it."""
    if before[axis] is not None and before[axis] == after[axis]:
        return True
    rest = [before[axis + 1 :], after[axis + 1 :]]
    static = all(isinstance(d, int) for part in rest for d in part)
    known = isinstance(before[axis], int) or isinstance(after[axis], int)
    return static and not known and int(np.prod(rest[0])) == int(np.prod(rest[1]))


def _merged(atoms: Array, lengths: list[int], place: int) -> Array:
    """Atoms of several axes read as one, where only the axis at `place` is tracked."""
    view = [1] * len(lengths)
    view[place] = lengths[place]
    return np.broadcast_to(atoms.reshape(view), lengths).reshape(-1)


def shape(node: gs.Node, channels: ChannelMap) -> None:
    """A Shape whose readers only take other dimensions does not mind; any other use fixes the axis."""
    for axis, atoms in channels.axes(node.inputs[0]).items():
        rank = len(node.inputs[0].shape)
        taken: set[int] = set()
        for user in node.outputs[0].outputs:
            taken |= _dimensions_read(user, rank)
        if axis in taken or node.attrs or channels.is_output(node.outputs[0]):
            channels.fix(atoms)


def _dimensions_read(node: gs.Node, rank: int) -> set[int]:
    """The entries of a shape of this rank that `node` reads: those a constant Gather or Slice picks, or all."""
    if node.op == "Gather" and isinstance(node.inputs[1], gs.Constant):
        return {int(i) % rank for i in node.inputs[1].values.reshape(-1)}
    if node.op == "Slice":
        starts, ends, steps = integers(node, "starts", 1), integers(node, "ends", 2), integers(node, "steps", 4)
        if starts is not None and ends is not None and (steps is not None or len(node.inputs) < 5):
            return set(range(rank)[slice(starts[0], ends[0], steps[0] if steps else 1)])
    return set(range(rank))


def product(node: gs.Node, channels: ChannelMap) -> None:
    """MatMul of two activations: the rows of the first and the columns of the second pass through."""
    a, b = node.inputs
    y = node.outputs[0]
    matrices = y.shape is not None and all(t.shape is not None and len(t.shape) > 1 for t in (a, b))
    for t, passing in ((a, -2), (b, -1)):
        for axis, atoms in channels.axes(t).items():
            if matrices and axis == len(t.shape) + passing:
                channels.track(y, len(y.shape) + passing, atoms)
            else:
                channels.fix(atoms)


def _integer_constant(node: gs.Node, what: str, values: list[int]) -> gs.Constant:
    return gs.Constant(unused_name(f"{node.name}/{what}"), np.array(values, dtype=np.int64))


RULES = {
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": squeeze,
    "Flatten": flatten,
    "Reshape": reshape,
    "Shape": shape,
    "MatMul": product,
}
