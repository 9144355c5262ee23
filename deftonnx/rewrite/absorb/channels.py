"""Which positions of which tensor axes stand or fall together.

Every position along a tracked (tensor, axis) has an atom. Rules unite atoms that must be deleted together (both sides
of an Add, a channel and its pixels after a Flatten), need those that somebody reads, fix those whose place matters too
(graph outputs, operators without a rule), and register the edit that deletes dead positions from a node. An atom that
nobody needs is dead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.layers.linear import replace_constant

Array = np.ndarray[Any, Any]


ALIGNMENT = 16
"""Channels of a convolution that fast kernels take at a time: ONNX Runtime's blocked layout on the CPU leaves out a
Conv whose input channels are no multiple of it."""
WORTH = 4
"""Dead channels are kept for alignment where they are at most one in WORTH of the live ones."""


class ChannelMap:
    """Atoms of the tracked axes of one graph."""

    def __init__(self, opset: int, outputs: Sequence[gs.Tensor] = ()) -> None:
        self.opset = opset
        self._outputs = {id(t) for t in outputs}
        self.edits: list[Callable[[], None]] = []
        self._parent: list[int] = []
        self._needed: list[bool] = []
        self._fixed: list[bool] = []
        self._axes: dict[int, dict[int, Array]] = {}
        self._tensors: dict[int, gs.Tensor] = {}
        self._balanced: list[Array] = []
        self._aligned: list[Array] = []
        self._revived: set[int] = set()
        self._rank: dict[int, int] = {}

    # -- rules build the map ----------------------------------------------------------------------------------

    def fresh(self, count: int) -> Array:
        """New atoms that nobody needs yet, (count,)."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._needed.extend([False] * count)
        self._fixed.extend([False] * count)
        return np.arange(start, start + count)

    def is_output(self, tensor: gs.Tensor) -> bool:
        """True for an output of the graph."""
        return id(tensor) in self._outputs

    def is_read(self, tensor: gs.Tensor) -> bool:
        """True for a tensor that a node reads or that the graph returns."""
        return bool(tensor.outputs) or self.is_output(tensor)

    def track(self, tensor: gs.Tensor, axis: int, atoms: Array) -> None:
        """Say that the positions of `tensor` along `axis` (≥ 0) are `atoms`."""
        self._axes.setdefault(id(tensor), {})[axis] = atoms
        self._tensors[id(tensor)] = tensor

    def axes(self, tensor: gs.Tensor) -> dict[int, Array]:
        """The tracked axes of `tensor` with their atoms."""
        return self._axes.get(id(tensor), {})

    def unite(self, a: Array, b: Array) -> None:
        """Delete a[i] and b[i] only together."""
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            ri, rj = self._root(i), self._root(j)
            if ri != rj:
                self._parent[rj] = ri
                self._needed[ri] |= self._needed[rj]
                self._fixed[ri] |= self._fixed[rj]

    def need(self, atoms: Array) -> None:
        """Never delete these."""
        for i in atoms.reshape(-1).tolist():
            self._needed[self._root(i)] = True

    def fix(self, atoms: Array) -> None:
        """Never delete these, and never move them."""
        self.need(atoms)
        for i in atoms.reshape(-1).tolist():
            self._fixed[self._root(i)] = True

    def fix_all(self, tensor: gs.Tensor) -> None:
        """Fix everything along every tracked axis of `tensor`."""
        for atoms in self.axes(tensor).values():
            self.fix(atoms)

    def balance(self, atoms: Array) -> None:
        """Keep equally many of every row of `atoms` (groups, channels): a grouped layer needs it."""
        self._balanced.append(atoms)

    def align(self, atoms: Array) -> None:
        """Keep a multiple of ALIGNMENT of these, if that keeps few dead ones."""
        self._aligned.append(atoms)

    def edit_constant(self, node: gs.Node, index: int, axis: int, atoms: Array) -> None:
        """Take what stays of `atoms` from constant input `index` of `node` along `axis`."""

        def edit() -> None:
            alive = self.alive(atoms)
            if not is_identity(alive, len(atoms)):
                replace_constant(node, index, node.inputs[index].values.take(alive, axis=axis))

        self.edits.append(edit)

    # -- then it is settled and asked -------------------------------------------------------------------------

    def settle(self) -> None:
        """Revive dead atoms until no axis is empty, every balanced row keeps as many as its fullest sibling, and
        convolutions keep their alignment."""
        for axes in self._axes.values():
            for atoms in axes.values():
                if len(atoms) and not self.alive_mask(atoms).any():
                    self.need(atoms[:1])
        changed = True
        while changed:
            changed = False
            for rows in self._balanced:
                most = int(self.alive_mask(rows).sum(1).max())
                for row in rows:
                    changed |= self._revive(row, most)
            for atoms in self._aligned:
                alive = int(self.alive_mask(atoms).sum())
                aligned = -(-alive // ALIGNMENT) * ALIGNMENT
                if WORTH * (aligned - alive) <= alive:
                    changed |= self._revive(atoms, min(aligned, len(atoms)))

    def _revive(self, atoms: Array, count: int) -> bool:
        """Keep dead `atoms`, the first ones first, until `count` of them stay; whether that took any."""
        revived = False
        while (mask := self.alive_mask(atoms)).sum() < count:
            first = atoms[np.flatnonzero(~mask)[:1]]
            self._revived |= set(self.roots(first).tolist())
            self.need(first)
            revived = True
        return revived

    def prefer(self, atoms: Array, first: Array) -> bool:
        """Order `atoms` so that those where `first` is True make a prefix, if every axis they lie on allows it."""
        roots = self.roots(atoms)
        members = set(roots.tolist())
        if any(self._fixed[r] for r in members) or len(members) < len(roots) or members & self._rank.keys():
            return False
        for axes in self._axes.values():
            for other in axes.values():
                theirs = self.roots(other)
                if not members.isdisjoint(theirs.tolist()) and not np.array_equal(theirs, roots):
                    return False
        if any(not members.isdisjoint(self.roots(rows.reshape(-1)).tolist()) for rows in self._balanced):
            return False
        self._rank.update(zip(roots.tolist(), np.where(first, 0, 1).tolist(), strict=True))
        return True

    def apply(self) -> None:
        """Make every edit, and bring the tensors' shapes up to date."""
        for edit in self.edits:
            edit()
        for key, tensor in self._tensors.items():
            if isinstance(tensor, gs.Variable) and tensor.shape is not None:
                lengths = {axis: len(self.alive(atoms)) for axis, atoms in self._axes[key].items()}
                tensor.shape = [lengths.get(axis, d) for axis, d in enumerate(tensor.shape)]

    def alive_mask(self, atoms: Array) -> Array:
        """True where an atom stays."""
        flat = [self._needed[self._root(i)] for i in atoms.reshape(-1).tolist()]
        return np.array(flat, dtype=bool).reshape(atoms.shape)

    def revived_mask(self, atoms: Array) -> Array:
        """True where an atom stays though nobody reads it."""
        return np.array([root in self._revived for root in self.roots(atoms).tolist()], dtype=bool)

    def alive(self, atoms: Array) -> Array:
        """Positions along an axis that stay, in their new order."""
        index = np.flatnonzero(self.alive_mask(atoms))
        rank = [self._rank.get(r, 0) for r in self.roots(atoms[index]).tolist()]
        return index[np.argsort(rank, kind="stable")]

    def roots(self, atoms: Array) -> Array:
        """One number per class of united atoms, (positions,)."""
        return np.array([self._root(i) for i in atoms.tolist()], dtype=np.int64)

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i


def is_identity(alive: Array, count: int) -> bool:
    """True where `alive` keeps all `count` positions in place."""
    return len(alive) == count and bool((alive == np.arange(count)).all())
