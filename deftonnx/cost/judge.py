"""Which rewrites of a layer pay: the faster form by a clock, and the sentence that says why another one was left.

A rewrite has to be faster by 2%, the geometric mean over the batch sizes, where times are measured; where they are
estimated it is left out only if it would be slower. Equal layers are asked about once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import onnx_graphsurgeon as gs

from deftonnx.cost import units
from deftonnx.cost.roofline import ModelClock
from deftonnx.cost.work import DEFT, STOCK, Convolution, Form, Product, Work
from deftonnx.elimination.groups import ELEMENT
from deftonnx.formats import weight_format
from deftonnx.formats.conv_function import Window
from deftonnx.formats.gemm_function import ANY_KERNEL
from deftonnx.layers import LinearLayer
from deftonnx.layers.conv import ConvLayer
from deftonnx.rewrite.absorb.elementwise import UNARY

GAIN = {"measured": 1.02, "estimated": 1.0}
PACKING_GAIN = {"measured": 1.02, "estimated": 0.8}
"""Estimates of ONNX Runtime's operators and of ours come from different models: a small loss may be their error."""
_ACTIVATIONS = {*UNARY, "Clip", "Div", "Gelu", "HardSwish", "LeakyRelu", "Mul", "PRelu", "Relu", "Sigmoid", "Tanh"}

Shape = tuple[int, ...]


class Clock(Protocol):
    """Answers how long a layer takes; None: no longer."""

    how: str

    def seconds(self, work: Work, forms: Sequence[Form], batches: Sequence[int]) -> dict[Form, list[float]] | None:
        """Seconds in each of `forms` (those that run), one for each batch."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a layer at each batch size, as ONNX Runtime's own operators compute all of it and as it is written.
    `how`: measured or estimated. `kernel`: the library's, where it can say."""

    before: list[float]
    after: list[float]
    how: str
    kernel: str | None


@dataclass(frozen=True)
class Verdict:
    """The granularity that pays, or the reason why none does."""

    granularity: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Place:
    """What a node with weights reads: the shape of X for one sample, and whether an activation follows."""

    x: Shape
    activated: bool


class Judge:
    """Asks `clock` and, where that does not answer, `model`. `kind`: TensorProto type of the activations.
    `format_name`: of packed weights. `places`: of the nodes, by name. `compute`: of DeftGemm nodes."""

    def __init__(
        self,
        clock: Clock,
        model: ModelClock,
        batches: Sequence[int],
        kind: int,
        format_name: str,
        places: Mapping[str, Place],
        progress: Callable[[str], None] = lambda what: None,
        compute: str = ANY_KERNEL,
    ) -> None:
        self.batches = tuple(batches)
        self.timings: dict[str, Timing] = {}
        self._clock, self._model, self._places, self._progress = clock, model, places, progress
        self._stock = Form(STOCK, kind)
        self._packed = Form(DEFT, kind, format_name, compute=compute)
        self._packed_conv = Form(DEFT, kind, weight_format(format_name))  # whose activations are not rounded
        self._dense: dict[str, Work] = {}
        self._written: dict[str, units.Part] = {}  # as decided so far, with all outputs: several may read them
        self._known: dict[tuple[Work, Form], tuple[list[float], str]] = {}

    @property
    def measures(self) -> bool:
        """True where times come from a GPU of this machine."""
        return self._clock.how == "measured"

    def remember(self, layers: Iterable[LinearLayer]) -> None:
        """Note what `layers` compute before anything is eliminated."""
        for layer in layers:
            if (work := self.work(layer)) is not None:
                self._dense[layer.name] = work

    def work(self, layer: LinearLayer) -> Work | None:
        """What `layer` computes, None where its sizes are not known."""
        if isinstance(layer, ConvLayer):
            return self._convolution(layer.name, layer, layer.input_features, layer.N)
        return self._product(layer.name, layer.input_axis, layer.groups, layer.K, layer.outputs)

    def granularity(self, layer: LinearLayer, density: float, ways: units.Ways) -> Verdict | None:
        """In what units eliminating down to `density` pays. None where nothing can be said.

        Layers have to be asked about in graph order.
        """
        work = self.work(layer)
        if work is None:
            return None
        operator = self._packed_conv if isinstance(work, Convolution) else self._packed
        own = (work, operator if ways.packable else self._stock)
        walked = units.walked(own, layer, density, ways)
        whole = ways.whole if ways.coarse or ways.whole == ELEMENT else None
        makers = [maker.name for maker in ways.makers if whole is not None and maker.name in self._written]
        before = [self._written[name] for name in makers]
        smaller = [units.with_fewer_outputs(part, density) for part in before]
        fewer = [units.with_fewer_inputs(own, density), *smaller]
        self._written[layer.name] = own
        self._times(work, [own[1], *(form for _, form in walked.values())])  # together
        picked, how = self._pick([own, *before], walked, None if whole is None else (whole, fewer))
        if picked is None:
            return None
        if picked.fast < GAIN[how]:
            what = f"with {picked.name} at density {density:g}"
            return Verdict(reason=self._sentence(what, picked.seconds, picked.dense, how))
        self._written[layer.name] = fewer[0] if picked.whole else walked[picked.name]
        return Verdict(granularity=picked.name)

    def _pick(
        self, dense: list[units.Part], walked: dict[str, units.Part], whole: tuple[str, list[units.Part]] | None
    ) -> tuple[units.Pick | None, str]:
        """The best way, and how the times are known: all in the same way."""
        parts = {*dense, *walked.values(), *(whole[1] if whole else [])}
        times = {(work, form): (self._times(work, [form]) or {}).get(form) for work, form in parts}
        hows = {self._how(*part) for part in parts if times[part] is not None}
        if len(hows) > 1:
            times = {(work, form): self._model.seconds(work, [form], self.batches)[form] for work, form in parts}
            hows = {self._model.how}
        return units.pick(units.Candidates(dense, walked, whole), times.get), (hows or {self._model.how}).pop()

    def gemm(self, layer: LinearLayer, block: int) -> str | None:
        """Why the MatMul or Gemm `layer` should not be a DeftGemm, or None. `block`: features of a kept block that the
        kernel would walk, 0 where all are kept or a Gather has taken the kept ones."""
        work = self._product(layer.name, layer.input_axis, layer.groups, layer.K, layer.outputs)
        if work is None:
            return None
        density = float(layer.kept[0, 0].mean())
        gathers = density < 1 and not block
        stock = replace(self._stock, density=density, gather=density < 1)
        return self._packs(layer.name, work, replace(self._packed, density=density, block=block, gather=gathers), stock)

    def conv(self, node: gs.Node) -> str | None:
        """Why the Conv or KeptConv `node` should not be a DeftConv, or None."""
        if node.op == "Conv":
            layer = ConvLayer(node)
            work = self._convolution(node.name, layer, layer.groups * layer.channels, layer.N)
            return None if work is None else self._packs(node.name, work, self._packed_conv)
        dense = self._dense.get(node.name)
        groups, taps, channels, outputs = node.attrs["dense_shape"]
        if not isinstance(dense, Convolution):
            return None
        work = replace(dense, channels=groups * channels, N=groups * outputs)
        blocks, width, _ = node.inputs[1].shape
        form = replace(self._packed_conv, density=blocks * width / (groups * taps * channels), block=width)
        return self._packs(node.name, work, form)

    def _product(self, name: str, axis: int, groups: int, K: int, N: int) -> Product | None:
        place = self._places.get(name)
        if place is None or groups != 1 or axis not in (-1, 1):
            return None
        return Product(math.prod(place.x[:-1]), K, N, place.activated)

    def _convolution(self, name: str, layer: ConvLayer, channels: int, N: int) -> Convolution | None:
        place = self._places.get(name)
        if place is None or len(place.x) != len(layer.kernel) + 1:
            return None
        image = place.x[1:]
        pads, _ = layer.window_grid(image)
        ends = [begin for begin, _ in pads] + [end for _, end in pads]
        window = Window.of(layer.kernel, layer.strides, ends, layer.dilations, layer.groups)
        return Convolution(tuple(image), channels, N, window, place.activated)

    def _packs(self, name: str, work: Work, form: Form, stock: Form | None = None) -> str | None:
        """Why ONNX Runtime's own operator, as `stock`, should stay, or None; the timing is noted where it goes."""
        dense = self._dense.get(name, work)
        stock = stock or self._stock
        times, whole = self._times(work, [stock, form]), self._times(dense, [self._stock])
        if not times or stock not in times or not whole or self._stock not in whole:
            return None
        if form not in times:
            return "the packed operator does not run at this size"
        how = self._how(work, form)
        if units.gain(times[stock], times[form]) < PACKING_GAIN[how]:
            return self._sentence("packed", times[form], times[stock], how)
        found = self._model.kernel(work, form, self.batches[-1])
        self.timings[name] = Timing(whole[self._stock], times[form], how, None if found is None else found[0])
        return None

    def _times(self, work: Work, forms: Sequence[Form]) -> dict[Form, list[float]] | None:
        missing = [form for form in forms if (work, form) not in self._known]
        if missing:
            self._progress(f"timing {work}")
            # those known are asked again, so that what is compared was measured together
            times, how = self._clock.seconds(work, forms, self.batches), self._clock.how
            if times is None:
                times, how = self._model.seconds(work, forms, self.batches), self._model.how
            self._known.update({(work, form): (found, how) for form, found in times.items()})
            return times
        return {form: self._known[work, form][0] for form in forms}

    def _how(self, work: Work, form: Form) -> str:
        return self._known[work, form][1]

    def _sentence(self, what: str, after: list[float], before: list[float], how: str) -> str:
        figures = [f"{a * 1e6:.3g} instead of {b * 1e6:.3g} µs" for a, b in zip(after, before, strict=True)]
        sizes = [f" at batch {batch}" for batch in self.batches]
        return f"{what} it would take {' and '.join(map(''.join, zip(figures, sizes, strict=True)))} ({how})"


def places(graph: gs.Graph, shapes: Mapping[str, Shape], samples: int) -> dict[str, Place]:
    """Where the nodes of `graph` with weights stand. `shapes`: of its tensors in a run with `samples` samples."""
    found = {}
    for node in graph.nodes:
        varying = [t for t in node.inputs if t.name in shapes and not isinstance(t, gs.Constant)]
        if node.op not in ("Conv", "Gemm", "MatMul") or len(varying) != 1:
            continue
        leading, *rest = shapes[varying[0].name]
        if leading % samples == 0 and leading:
            # rows of several samples may have been joined into one axis
            x = tuple(rest) if leading == samples else (leading // samples, *rest)
            found[node.name] = Place(x, _activated(node))
    return found


def _activated(node: gs.Node) -> bool:
    users = node.outputs[0].outputs
    if len(users) == 1 and users[0].op == "Add" and any(isinstance(t, gs.Constant) for t in users[0].inputs):
        users = users[0].outputs[0].outputs
    return any(user.op in _ACTIVATIONS for user in users)
