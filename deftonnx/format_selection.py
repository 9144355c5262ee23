"""Which layers of a run are packed, in which format, what that costs in accuracy, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from deftonnx.calibration.activations import ActivationStream, Feed
from deftonnx.calibration.spool import Spool
from deftonnx.cost.judge import Judge
from deftonnx.formats import FormatError, PackedWeight, multiplied, pack_weight, unpack_weight
from deftonnx.layers import LinearLayer, Refusal
from deftonnx.plan import Plan
from deftonnx.rewrite import pack
from deftonnx.selection import GRAM_LIMIT, excluded
from deftonnx.settings import AUTOMATIC, FP32, Settings

Array = np.ndarray[Any, Any]
ROWS = 16384
FEWEST_ROWS = 512
ELEMENTS = 1 << 25
"""Rows of X sampled for the output error of a layer's formats: ROWS, or as many as hold ELEMENTS numbers where that is
fewer, but at least FEWEST_ROWS."""


@dataclass
class FormatChoice:
    """The format of one layer; `error` is ‖X·W − X'·Q‖² over the variance of X·W on the calibration rows, for the
    packed weight Q and X as the layer multiplies it, X' = X but for fp8. `bytes` are those of codes and scales."""

    layer: LinearLayer
    format: str
    bytes: int
    error: float | None = None


def choose_formats(
    graph: gs.Graph,
    layers: list[LinearLayer],
    settings: Settings,
    plan: Plan | None,
    batches: list[Feed] | None,
    judge: Judge | None = None,
) -> tuple[list[FormatChoice], list[Refusal]]:
    """A format for every layer to pack, and a refusal for every layer that stays in float32 against the wish.

    A plan's own format for a layer goes before `settings`. `graph` is run on `batches`, where there are any, for the
    output error of a format, by which `deft8:auto` chooses its exponent bits. `judge` says what pays.
    """
    entries = {entry.name: entry for entry in plan.layers if entry.format is not None} if plan else {}
    names: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for layer in layers:
        entry = entries.get(layer.name)
        name = settings.format if entry is None else str(entry.format)
        if name == FP32:
            reason = None if entry is None else entry.format_reason
        else:
            reason = _refuse(layer, graph.opset, settings, entry is not None)
            if reason is None and entry is None and judge is not None:
                reason = judge.gemm(layer, walked_block(layer, settings))
            names.update({} if reason else {layer.name: name})
        reasons.update({layer.name: reason} if reason else {})
    choices = []
    for layer, X in _with_rows(graph, [x for x in layers if x.name in names], batches, settings.seed):
        outcome = _settle(layer, names[layer.name], X, layer.name in entries)
        if isinstance(outcome, str):
            reasons[layer.name] = outcome
        else:
            choices.append(outcome)
    return choices, [Refusal(x.name, x.op, reasons[x.name]) for x in layers if x.name in reasons]


def walked_block(layer: LinearLayer, settings: Settings) -> int:
    """Features of the kept blocks that a CUDA kernel walks if `layer` is packed, so that it needs no Gather; 0 where
    all are kept or they are no blocks."""
    if settings.target != "cuda" or layer.kept.all():
        return 0
    found = pack.blocks_kept(layer.kept[0, 0])
    return 0 if found is None else found[0]


def record_formats(plan: Plan, choices: list[FormatChoice], refusals: list[Refusal]) -> None:
    """Write the formats into the entries of `plan`."""
    chosen = {choice.layer.name: choice for choice in choices}
    reasons = {refusal.name: refusal.reason for refusal in refusals}
    for serial, entry in enumerate(plan.layers):
        if entry.name in chosen:
            choice = chosen[entry.name]
            error = None if choice.error is None else float(f"{choice.error:.6g}")
            plan.layers[serial] = replace(entry, format=choice.format, format_error=error)
        elif entry.name in reasons:
            plan.layers[serial] = replace(entry, format=FP32, format_reason=reasons[entry.name])


def _refuse(layer: LinearLayer, opset: int, settings: Settings, planned: bool) -> str | None:
    """Why a layer is not packed: it cannot be, or the user has excluded it and no plan says otherwise."""
    if settings.portable:
        return "packed formats need ai.deftonnx nodes, which --portable forbids"
    return pack.refuse(layer, opset) or (None if planned else excluded(layer.name, layer.op, settings))


def _with_rows(
    graph: gs.Graph, layers: list[LinearLayer], batches: list[Feed] | None, seed: int
) -> Iterator[tuple[LinearLayer, Array | None]]:
    """Each layer with sampled rows of its X (rows, K), or None without data."""
    if not batches:
        yield from ((layer, None) for layer in layers)
        return
    spool = Spool()
    try:
        stream = ActivationStream.start(graph, batches, spool)
        position = {id(node): i for i, node in enumerate(graph.nodes)}
        for layer in sorted(layers, key=lambda layer: position[id(layer.node)]):
            stream.advance(position[id(layer.node)])
            limit = -(-min(ROWS, max(FEWEST_ROWS, ELEMENTS // layer.K)) // len(batches))
            rng = np.random.default_rng([seed, position[id(layer.node)]])
            parts = [layer.rows(x, limit, rng)[:, 0] for x in stream.batches(layer.x.name)]
            yield layer, np.concatenate(parts)
    finally:
        spool.close()


def _settle(layer: LinearLayer, name: str, X: Array | None, explicit: bool) -> FormatChoice | str:
    """The choice for one layer from rows X (rows, K) of its input, or the reason to leave it."""
    kept = layer.kept[0, 0]
    weight = layer.weight()[0][kept]  # (K', N)
    X = None if X is None or not len(X) else X[:, kept]
    with_gram = name in AUTOMATIC and X is not None and len(weight) <= GRAM_LIMIT
    try:
        packed = pack_weight(weight, "deft8:auto" if name in AUTOMATIC else name, _gram(X) if with_gram else None)
    except FormatError as error:
        return str(error)
    if not explicit and packed.nbytes >= 4 * weight.size:
        return "with its rows padded for the kernels, its packed weight would be no smaller than in float32"
    return FormatChoice(
        layer, packed.format if name in AUTOMATIC else name, packed.nbytes, _output_error(X, weight, packed)
    )


def _gram(X: Array | None) -> Array | None:
    return None if X is None else X.T @ X


def _output_error(X: Array | None, weight: Array, packed: PackedWeight) -> float | None:
    """‖X·W − X'·Q‖² over ‖X·W − mean‖², None without rows and where X·W does not vary."""
    if X is None:
        return None
    Y, difference = X @ weight, X @ (weight - unpack_weight(packed))
    if (rounded := multiplied(X, packed.format)) is not X:
        difference += (X - rounded) @ unpack_weight(packed)
    variance = float(np.square(Y - Y.mean(0)).sum())
    return float(np.square(difference).sum()) / variance if variance > 0 else None
