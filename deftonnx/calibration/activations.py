"""Activations of a graph, layer by layer: each stretch of nodes runs once, from the cached tensors at its border."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, dtype_to_onnx

from deftonnx.calibration.spool import Spool, Stored
from deftonnx.errors import UnsupportedError
from deftonnx.formats.functions import attach_functions
from deftonnx.model import Model, apart
from deftonnx.sessions import first_line, lasting

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]


class ActivationStream:
    """The live tensors of `graph` before node `position`, for every calibration batch.

    `advance` runs the nodes up to a later position and forgets what no later node reads.
    """

    def __init__(self, graph: gs.Graph, live: dict[str, list[Stored]], position: int, spool: Spool) -> None:
        self.graph, self.live, self.position, self.spool = graph, live, position, spool

    @classmethod
    def start(cls, graph: gs.Graph, batches: list[Feed], spool: Spool) -> ActivationStream:
        """The stream at the graph's inputs."""
        live = {t.name: [spool.store(feed[t.name]) for feed in batches] for t in graph.inputs}
        return cls(graph, live, 0, spool)

    def fork(self, graph: gs.Graph) -> ActivationStream:
        """A stream over another graph with the same nodes and names, at the same place."""
        return ActivationStream(graph, dict(self.live), self.position, self.spool)

    def advance(self, position: int) -> None:
        """Run the nodes before `position`."""
        last_use = _last_uses(self.graph)
        nodes = self.graph.nodes[self.position : position]
        self.position = max(position, self.position)
        produced = {t.name for node in nodes for t in node.outputs if t.name}
        keep = sorted(name for name in produced if last_use.get(name, -1) >= position)
        read = {t.name for node in nodes for t in reads(node)} & self.live.keys()
        if keep:
            for name, arrays in zip(keep, self._run(nodes, sorted(read), keep), strict=True):
                self.live[name] = arrays
        self.live = {name: arrays for name, arrays in self.live.items() if last_use.get(name, -1) >= position}

    def batches(self, name: str) -> Iterator[Array]:
        """The values of a live tensor, batch by batch."""
        for stored in self.live[name]:
            yield stored.load()

    def _run(self, nodes: list[gs.Node], inputs: list[str], outputs: list[str]) -> list[list[Stored]]:
        count = len(next(iter(self.live.values())))
        sample = {name: self.live[name][0].load() for name in inputs}
        session = _session(extract(self.graph, nodes, sample, outputs))
        results: list[list[Stored]] = [[] for _ in outputs]
        for batch in range(count):
            feed = {name: self.live[name][batch].load() for name in inputs}
            for column, value in zip(results, session.run(outputs, feed), strict=True):
                column.append(self.spool.store(value))
        return results


def reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """The tensors a node reads, those that the bodies of If, Loop and Scan take from outside included."""
    yield from (t for t in node.inputs if t.name)
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            inside = {t.name for inner in value.nodes for t in inner.outputs} | {t.name for t in value.inputs}
            for inner in value.nodes:
                yield from (t for t in reads(inner) if t.name not in inside)
            yield from (t for t in value.outputs if t.name not in inside)


def _last_uses(graph: gs.Graph) -> dict[str, int]:
    """Position of the last node that reads each tensor."""
    return {t.name: i for i, node in enumerate(graph.nodes) for t in reads(node)}


def extract(graph: gs.Graph, nodes: list[gs.Node], sample: Feed, outputs: list[str]) -> Model:
    """The model of some of a graph's nodes, its inputs typed like `sample`."""
    tensors = {t.name: t for node in nodes for t in reads(node)}
    constants = {name: t for name, t in tensors.items() if isinstance(t, gs.Constant)}
    part = onnx.helper.make_graph(
        [OnnxExporter.export_node(node) for node in nodes],
        "part",
        [
            onnx.helper.make_tensor_value_info(name, dtype_to_onnx(a.dtype), _shape(tensors[name], a))
            for name, a in sample.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        [OnnxExporter.export_tensor_proto(t) for t in constants.values()],
    )
    opsets = graph.import_domains or [onnx.helper.make_opsetid("", graph.opset)]
    functions = [OnnxExporter.export_function(f) for f in graph.functions]
    model = onnx.helper.make_model(part, opset_imports=opsets, functions=functions, ir_version=10)
    attach_functions(model, graph.opset)  # the bodies that the nodes of this part need
    return apart(model)


def _shape(tensor: gs.Tensor, value: Array) -> list[int | None]:
    """All free, but for the length of what may be sizes: without it ONNX Runtime infers wrong ones from a Slice."""
    sizes = value.dtype == np.int64 and value.ndim == 1 and tensor.shape is not None
    return [tensor.shape[0]] if sizes and isinstance(tensor.shape[0], int) else [None] * value.ndim


def _session(model: Model) -> ort.InferenceSession:
    try:
        return lasting(model)
    except Exception as error:
        raise UnsupportedError(f"ONNX Runtime cannot run part of the model on the CPU: {first_line(error)}") from error
