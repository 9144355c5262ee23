"""From the masked graph to the model that is given away: absorb, choose formats, eliminate, pack, fuse.

Each stage has to compute what the one before it did: the eliminated graph what the masked one does, and the packed
graph what the graph with the decoded weights does. Activations are rounded to FP8 last, since that is meant to change
results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnx import TensorProto

from deftonnx import evaluation, precision
from deftonnx.calibration import readers
from deftonnx.cost.judge import Judge
from deftonnx.elimination.choice import Choice
from deftonnx.errors import DeftError, UnsupportedError
from deftonnx.format_selection import FormatChoice, choose_formats, walked_block
from deftonnx.formats.conv_function import is_conv
from deftonnx.formats.fp8 import FP8
from deftonnx.layers import LinearLayer, Refusal
from deftonnx.layers.linear import constant_bytes, unused_name
from deftonnx.model import Model
from deftonnx.plan import Plan
from deftonnx.precision import Narrowed, to_sixteen_bits
from deftonnx.report.report import LayerRow
from deftonnx.rewrite.absorb import absorb
from deftonnx.rewrite.attention.pack import pack_attention
from deftonnx.rewrite.channels_last import to_channels_last
from deftonnx.rewrite.eliminate import eliminate, walks_channels
from deftonnx.rewrite.fill_features import fill_features
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.fuse import fuse
from deftonnx.rewrite.joined_layers import Joined, join_layers
from deftonnx.rewrite.narrow import chains, narrow
from deftonnx.rewrite.normalise import export_model, import_model, infer_shapes
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.pack import decode, pack, pack_weights, round_activations
from deftonnx.rewrite.packed_conv import encode
from deftonnx.rewrite.pool_inside import pool_inside
from deftonnx.rewrite.regions.assign import is_float
from deftonnx.rewrite.regions.casts import join_casts
from deftonnx.selection import excluded
from deftonnx.settings import AUTOMATIC, FP32, Settings

TOLERANCE = {np.dtype(np.float16): 2e-2}
IO_TOLERANCE = {"keep": 0.0, "float16": 2e-2, "bfloat16": 1e-1}
FP8_TOLERANCE = 1e-1
"""An activation that lies between two codes of 8 bits goes the other way for a rounding step, in float32 too."""
DEFAULT_TOLERANCE = 1e-3
SIXTEEN_BITS = ("half", "deft16", "deft16q")
"""Formats of weights that round as activations in 16 bits do."""
ABSOLUTE_TOLERANCE = 1e-6
"""ONNX Runtime's Sigmoid is off by 1e-7 near zero: a saturated output has no more correct digits than that."""
ROUNDING_WITHIN = {
    TensorProto.FLOAT16: IO_TOLERANCE["float16"],
    **dict.fromkeys((TensorProto.BFLOAT16, TensorProto.INT8, TensorProto.UINT8), IO_TOLERANCE["bfloat16"]),
}
"""What values of a type somewhere in a model may cost an output where they are rounded the other way."""
DIFFERENT_RESULT = "the result differs from its plan {}; please report this model, and use --no-absorb meanwhile"
DIFFERENT_PREPARED = "the model differs {} once its constants and normalisations are folded; please report this model"


@dataclass
class Before:
    """A layer as the model had it."""

    macs: int
    K: int
    bytes: int


@dataclass
class Assembled:
    """What became of each layer, and what the finished graph must compute on the probe."""

    expected: evaluation.Outputs
    macs: int
    rows: list[LayerRow]
    formats: list[FormatChoice]
    unpacked: list[Refusal]
    """Layers that stay in fp32 against the wish."""
    wide: list[Refusal]
    """Inputs and outputs of the graph that stay float32 against the wish."""
    in_float32: list[Refusal]
    """Heavy nodes that stay in float32 against the wish."""
    joined: list[Joined]
    apart: list[Refusal]
    """Layers behind one another that stay nodes of their own."""
    rounded: float = 0.0
    """‖Δ‖/‖y‖ that computing in 16 bits costs on the probe."""
    codes: float = 0.0
    """‖Δ‖/‖y‖ that activations in FP8 cost on the probe. A session that rounds them otherwise is as far from what they
    were, on the other side."""


def before(layers: list[LinearLayer]) -> dict[str, Before]:
    """The sizes of layers that nothing has been done to yet."""
    return {layer.name: Before(layer.macs(), layer.K, layer.constant_bytes()) for layer in layers}


def assemble(
    graph: gs.Graph,
    origin: onnx.ModelProto,
    layers: list[LinearLayer],
    choices: list[Choice],
    sizes: dict[str, Before],
    settings: Settings,
    plan: Plan | None,
    batches: list[readers.Feed] | None,
    probe: list[readers.Feed],
    judge: Judge | None = None,
) -> Assembled:
    """Write the choices into the masked `graph`, in place. `batches` are calibration data, `probe` what to check on,
    and `judge` says which packed operators pay."""
    unrounded = expected = evaluation.outputs(export_model(graph, origin), probe)
    kept = {layer.name: int(layer.kept.sum()) // layer.groups for layer in layers}
    smaller = not all(layer.kept.all() for layer in layers)
    while settings.absorb and absorb(graph, layers):
        smaller = True
    formats, unpacked = choose_formats(graph, layers, settings, plan, batches, judge)
    in_kernel = _in_kernel(layers, formats, settings)
    walked = _walked(layers, settings)
    rows = {x.name: _row(x, kept[x.name], x.name in in_kernel | walked, sizes[x.name]) for x in layers}
    eliminate(graph, [layer for layer in layers if layer.name not in in_kernel], walked)
    sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    if formats:
        if smaller:
            verify(expected, finish(graph, origin, {}), probe)
        expected = _pack(graph, origin, layers, formats, in_kernel, probe, settings)
    wide: list[Refusal] = []
    narrowed, convolutions = Narrowed(), dict[str, gs.Node]()
    if settings.precision != "keep":
        convolutions, unpaid, narrowed, expected = _sixteen_bits(
            graph, origin, settings, plan, batches, probe, judge, unrounded, expected
        )
        settled = {*convolutions, *(refusal.name for refusal in unpaid)}
        unpacked = [refusal for refusal in unpacked if refusal.name not in settled] + unpaid
    if settings.io_types != "keep":
        verify(expected, finish(graph, origin, {}), probe, rounding(settings))
        wide = _narrow(graph, origin, settings.io_types, batches)
    if settings.io_types != "keep" or settings.precision != "keep":
        join_casts(graph)
    pool_inside(graph)
    if formats and settings.format != FP8:
        fill_features(graph)
    codes = 0.0
    if rounded := {choice.layer.name for choice in formats if choice.format == FP8}:
        verify(expected, finish(graph, origin, {}), probe, rounding(settings), narrowed=settings.io_types != "keep")
        round_activations(graph, rounded)
        unrounded, expected = expected, evaluation.outputs(finish(graph, origin, {}), probe)
        codes = precision.distance(unrounded, expected)
    _complete(rows, layers, choices, formats)
    for name, node in convolutions.items():
        if name in rows:
            rows[name].format, rows[name].bytes_after = str(node.attrs["format"]), constant_bytes(node)
    _tell_output_types(graph, rows, narrowed)
    _tell_times(rows, judge)
    separate = finish(graph, origin, {}) if narrowed.cost > precision.TOLERANCE / 2 else None
    if settings.precision != "keep":
        infer_shapes(graph)
        pack_attention(graph)
    joined, apart = _join(graph, settings, plan)
    if separate is not None and precision.difference(expected, finish(graph, origin, {}), probe) > rounding(settings):
        # other sums, rounded elsewhere: where that costs so much, only what was compared may stay
        restored = import_model(separate)
        graph.nodes, graph.inputs, graph.outputs = restored.nodes, restored.inputs, restored.outputs
        joined = []
    for node in joined:
        for name in node.layers:
            if name in rows:
                rows[name].joined = node.name
    changed = [row for row in rows.values() if row.changed]
    macs = sum(row.macs_after for row in rows.values())
    cost = narrowed.cost
    return Assembled(expected, macs, changed, formats, unpacked, wide, narrowed.refusals, joined, apart, cost, codes)


def _join(graph: gs.Graph, settings: Settings, plan: Plan | None) -> tuple[list[Joined], list[Refusal]]:
    """Join small layers that follow each other, if a plan says so or there is none; why others were not."""
    if settings.target != "cuda" or settings.portable:
        return [], []
    planned = {entry.name: entry.joined for entry in plan.layers} if plan else {}

    def refused(nodes: list[gs.Node]) -> str | None:
        names = {planned.get(node.name) for node in nodes}
        return None if plan is None or (len(names) == 1 and None not in names) else "the plan says so"

    infer_shapes(graph)
    return join_layers(graph, refused)


def _row(layer: LinearLayer, kept: int, in_kernel: bool, was: Before) -> LayerRow:
    """What elimination makes of a layer, which is about to be written."""
    return LayerRow(
        name=layer.name,
        op=layer.op,
        K=was.K,
        kept=kept,
        granularity=None,
        form="kept blocks" if in_kernel else _form(layer),
        error=None,
        macs_before=was.macs,
        macs_after=layer.macs(),
        bytes_before=was.bytes,
    )


def _complete(
    rows: dict[str, LayerRow], layers: list[LinearLayer], choices: list[Choice], formats: list[FormatChoice]
) -> None:
    """Add what was chosen for each layer, and the size of what was written."""
    chosen = {choice.layer.name: choice for choice in choices}
    packed = {choice.layer.name: choice for choice in formats}
    for layer in layers:
        row = rows[layer.name]
        row.bytes_after = layer.constant_bytes()
        if (choice := chosen.get(layer.name)) is not None:
            row.granularity, row.error = choice.granularity.name, choice.error
        else:
            row.form = "all kept" if row.macs_after == row.macs_before else "fewer outputs"
        if (format_choice := packed.get(layer.name)) is not None:
            row.format, row.format_error = format_choice.format, format_choice.error


def _tell_output_types(graph: gs.Graph, rows: dict[str, LayerRow], narrowed: Narrowed) -> None:
    for name, kind in narrowed.kinds.items():
        if (own := name.removesuffix(unused_name(""))) in rows:  # as DeftConv nodes are called
            rows[own].output_type = kind
    for node in graph.nodes:
        if node.name in rows and "output_type" in node.attrs:
            rows[node.name].output_type = TensorProto.DataType.Name(node.attrs["output_type"]).lower()


def _tell_times(rows: dict[str, LayerRow], judge: Judge | None) -> None:
    """Put what `judge` knows of layers that were rewritten into their rows."""
    if judge is None:
        return
    for name, timing in judge.timings.items():
        if name in rows:
            row = rows[name]
            row.kernel, row.timed = timing.kernel, timing.how
            row.us_before = {b: 1e6 * t for b, t in zip(judge.batches, timing.before, strict=True)}
            row.us_after = {b: 1e6 * t for b, t in zip(judge.batches, timing.after, strict=True)}


def _in_kernel(layers: list[LinearLayer], formats: list[FormatChoice], settings: Settings) -> set[str]:
    """Packed layers whose kept features are blocks that a CUDA kernel walks, so that they need no Gather."""
    packed = {choice.layer.name for choice in formats}
    return {layer.name for layer in layers if layer.name in packed and walked_block(layer, settings)}


def _walked(layers: list[LinearLayer], settings: Settings) -> set[str]:
    """Convolutions whose kept blocks of channels a CUDA kernel walks, so that they need no Gather."""
    if settings.target != "cuda" or settings.precision == "keep" or settings.format == FP32 or settings.portable:
        return set()
    return {layer.name for layer in layers if walks_channels(layer)}


def _form(layer: LinearLayer) -> str:
    """How the elimination of a layer is written."""
    if layer.kept.all():
        return "absorbed"
    if not (layer.kept == layer.kept[:, :1]).all():
        return "KeptConv"
    first = layer.kept[0, 0]
    prefix = layer.groups == 1 and bool(first[: int(first.sum())].all())
    return "Slice" if prefix else "Gather"


def _sixteen_bits(
    graph: gs.Graph,
    origin: onnx.ModelProto,
    settings: Settings,
    plan: Plan | None,
    batches: list[readers.Feed] | None,
    probe: list[readers.Feed],
    judge: Judge | None,
    unrounded: evaluation.Outputs,
    expected: evaluation.Outputs,
) -> tuple[dict[str, gs.Node], list[Refusal], Narrowed, evaluation.Outputs]:
    """Regions with channels last, then regions in 16 bits: the DeftConv nodes, why others were left, the types, and
    what the graph computes now.

    A convolution whose activations stay in float32 is left to ONNX Runtime: DeftConv has fast kernels for 16 bits only.
    """
    before, rounded = finish(graph, origin, {}), expected
    wide: dict[str, Refusal] = {}
    while True:
        convolutions, unpaid = _channels_last(graph, settings, plan, judge, wide)
        verify(rounded, finish(graph, origin, {}), probe)
        if convolutions:
            for node in convolutions.values():
                encode(node, "half" if settings.format in (*AUTOMATIC, FP8) else settings.format)
            expected = evaluation.outputs(finish(graph, origin, {}), probe)
        limit = precision.TOLERANCE
        if settings.format in SIXTEEN_BITS:
            limit = max(limit, precision.AMPLIFIED * precision.distance(unrounded, expected))
        narrowed = to_sixteen_bits(graph, origin, expected, batches or probe, probe, limit)
        slow = [node.name for node in graph.nodes if is_conv(node.domain, node.op) and is_float(node.inputs[0])]
        slow = [name.removesuffix(unused_name("")) for name in slow]
        if not {*slow} - {*wide} or plan is not None or settings.decide_by == "nothing":
            break
        for name in slow:
            wide[name] = Refusal(name, "Conv", "its activations stay in float32, for which DeftConv has no fast kernel")
        restored = import_model(before)
        graph.nodes, graph.inputs, graph.outputs = restored.nodes, restored.inputs, restored.outputs
        expected = rounded
    if narrowed.cost > precision.TOLERANCE:
        expected = evaluation.outputs(finish(graph, origin, {}), probe)
    return convolutions, unpaid, narrowed, expected


def _channels_last(
    graph: gs.Graph, settings: Settings, plan: Plan | None, judge: Judge | None, refused: dict[str, Refusal]
) -> tuple[dict[str, gs.Node], list[Refusal]]:
    """Make DeftConv nodes, where they may be and pay and are not `refused`, in regions with channels last; and why
    others were left. Their weights are fp32 yet."""
    if settings.target != "cuda" or settings.portable or settings.format == FP32:
        return {}, []
    infer_shapes(graph)
    planned = {entry.name: entry.format_reason for entry in plan.layers if entry.format == FP32} if plan else {}
    refusals = list(refused.values())

    def pays(node: gs.Node) -> bool:
        if node.name in refused or node.op == "BatchNormalization":
            return node.name not in refused
        reason = planned.get(node.name) if plan else excluded(node.name, node.op, settings)
        if reason is None and plan is None and judge is not None:
            reason = judge.conv(node)
        if reason is not None:
            refusals.append(Refusal(node.name, node.op, reason))
        return reason is None

    made = to_channels_last(graph, FP32, pays)
    fuse(graph)
    return made, refusals


def _pack(
    graph: gs.Graph,
    origin: onnx.ModelProto,
    layers: list[LinearLayer],
    formats: list[FormatChoice],
    in_kernel: set[str],
    probe: list[readers.Feed],
    settings: Settings,
) -> evaluation.Outputs:
    """Pack and fuse; what the graph computes on `probe` with the decoded weights."""
    packed = pack_weights(layers, {choice.layer.name: choice.format for choice in formats}, in_kernel)
    decode(layers, packed, in_kernel)
    expected = evaluation.outputs(finish(graph, origin, {}), probe)
    infer_shapes(graph)
    pack(graph, layers, packed, in_kernel, settings.compute)
    fuse(graph)
    return expected


def _narrow(graph: gs.Graph, origin: onnx.ModelProto, asked: str, batches: list[readers.Feed] | None) -> list[Refusal]:
    """Give activations the 16-bit type that was asked for where their values on `batches` allow it."""
    infer_shapes(graph)
    names = sorted({t.name for chain in chains(graph, asked) for t in chain.tensors} | {t.name for t in graph.outputs})
    known = {t.name for t in graph.inputs}
    ranges: dict[str, float] = {}
    if batches:
        model = finish(graph, origin, {})
        infer_shapes(graph)
        outputs = model.shell.graph.output
        made = {t.name for t in outputs}
        observed = [name for name in names if name not in known]
        outputs.extend(onnx.ValueInfoProto(name=name) for name in observed if name not in made)
        session = evaluation.session(model)
        for feed in batches:
            values = {**feed, **evaluation.run(session, [feed])}
            for name in names:
                if values[name].dtype.kind == "f" and values[name].size:
                    ranges[name] = max(ranges.get(name, 0.0), float(np.abs(values[name]).max()))
    return narrow(graph, asked, ranges)


def rounding(settings: Settings, formats: Sequence[FormatChoice] = ()) -> float:
    """What the narrow types that were asked for may cost an output, ‖Δ‖/‖y‖, where layers are packed as `formats`."""
    narrow = 0.0 if settings.precision == "keep" else precision.TOLERANCE
    codes = FP8_TOLERANCE if any(choice.format == FP8 for choice in formats) else 0.0
    return max(IO_TOLERANCE[settings.io_types], narrow, codes)


def verify(
    expected: evaluation.Outputs,
    final: Model | onnxruntime.InferenceSession,
    feeds: list[readers.Feed],
    limit: float = 0.0,
    message: str = DIFFERENT_RESULT,
    narrowed: bool = False,
) -> None:
    """Raise DeftError unless `final` computes what is `expected` of it on `feeds`, to rounding or to `limit`, with
    floats of the same shapes; `message` of the error tells how it differs. `narrowed`: floats may have another type."""
    if not feeds:
        return
    got = evaluation.outputs(final, feeds)
    for name, want in expected.items():
        have = got[name]
        if have.dtype != want.dtype and not (narrowed and have.dtype.kind == want.dtype.kind == "f"):
            raise _failed(name, message, f"in type, {have.dtype} instead of {want.dtype}")
        if want.dtype.kind != "f":  # and of a shape that may depend on rounding
            continue
        if have.shape != want.shape:
            raise _failed(name, message, f"in shape, {have.shape} instead of {want.shape}")
        allowed = max(TOLERANCE.get(want.dtype, DEFAULT_TOLERANCE), limit)
        ours, wanted = evaluation.without_agreed(have.astype(np.float64), want.astype(np.float64))
        with np.errstate(invalid="ignore"):
            difference, norm = float(np.linalg.norm(ours - wanted)), float(np.linalg.norm(wanted))
        if not difference <= allowed * norm + ABSOLUTE_TOLERANCE * np.sqrt(want.size):
            if not np.isfinite(want).all():
                raise UnsupportedError(
                    f"output '{name}' of the model is NaN or infinite on the data that it was tried with, so that the"
                    " result cannot be compared with it"
                )
            raise _failed(name, message, f"by {difference / max(norm, 1e-30):.2g}")


def _failed(output: str, message: str, how: str) -> DeftError:
    return DeftError(f"internal check failed: output '{output}' of {message.format(how)}")


def rounding_within(model: onnx.ModelProto) -> float:
    """What computing in another order may cost an output, ‖Δ‖/‖y‖, by the types in the model."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    kinds = {tensor.data_type for tensor in graph.initializer} | {v.type.tensor_type.elem_type for v in values}
    kinds |= {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    return max(precision.TOLERANCE, *(ROUNDING_WITHIN.get(kind, 0.0) for kind in kinds))
