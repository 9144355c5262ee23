"""Small layers that follow each other become one DeftMlp node: any node costs a session some microseconds.

To be called when types are settled, on a graph whose types are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx

from deftonnx.formats.gemm_function import ANY_KERNEL
from deftonnx.formats.mlp_function import LEAST_LAYERS, OPERATOR, mlp_attributes
from deftonnx.formats.operator_function import DOMAIN
from deftonnx.layers import Refusal
from deftonnx.layers.linear import is_standard, stored_as, unused_name
from deftonnx.rewrite.fuse import is_deft_gemm
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.output_types import has_residual
from deftonnx.rewrite.reserved import Reserved

WIDEST = 512
"""Features that a layer makes; more take longer to multiply by than a node costs."""
WIDEST_X = 1024
"""Features of X."""
_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CONSTANTS = slice(1, 4)


@dataclass(frozen=True)
class Joined:
    """The layers, by name, that became the DeftMlp node `name`."""

    name: str
    layers: tuple[str, ...]


def join_layers(graph: gs.Graph, refused: Callable[[list[gs.Node]], str | None]) -> tuple[list[Joined], list[Refusal]]:
    """Rewrite in place: what was joined, and why other layers in a chain were not.

    `refused`: why DeftGemm nodes that could be one stay as they are, or None.
    """
    reserved = Reserved(graph)
    done: list[Joined] = []
    refusals: list[Refusal] = []
    for chain in list(_chains(graph, reserved)):
        for part in _parts(chain, refusals):
            reason = refused(part)
            if reason is not None:
                refusals += [Refusal(node.name, node.op, reason) for node in part]
                continue
            done.append(_join(graph, part, reserved))
    if done:
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return done, refusals


def _chains(graph: gs.Graph, reserved: Reserved) -> Iterator[list[gs.Node]]:
    """DeftGemm nodes that each alone read what the one before makes, as many as there are."""
    for node in graph.nodes:
        if not _is_plain(node) or _before(node, reserved) is not None:
            continue
        chain = [node]
        while (behind := _behind(chain[-1], reserved)) is not None:
            chain.append(behind)
        if len(chain) >= LEAST_LAYERS:
            yield chain


def _parts(chain: list[gs.Node], refusals: list[Refusal]) -> Iterator[list[gs.Node]]:
    """The longest pieces of `chain` whose layers are small enough; why others are not goes to `refusals`."""
    part: list[gs.Node] = []
    for node in chain:
        if node.attrs["N"] > WIDEST or node.attrs["K"] > WIDEST_X:
            most = f"{WIDEST} outputs of {WIDEST_X} features"
            refusals.append(Refusal(node.name, node.op, f"it is larger than layers in one node may be, {most}"))
            yield from [part] if len(part) >= LEAST_LAYERS else []
            part = []
        else:
            part.append(node)
    yield from [part] if len(part) >= LEAST_LAYERS else []


def _is_plain(node: gs.Node) -> bool:
    """True for a DeftGemm that a layer of a DeftMlp can be, whatever is before and behind it: the kernels hold weights
    in the type of X."""
    if not is_deft_gemm(node) or node.attrs["block"] or node.attrs["compute"] != ANY_KERNEL or has_residual(node):
        return False
    x = node.inputs[0]
    if x.dtype is None or isinstance(x, gs.Constant):
        return False
    kind, name = dtype_to_onnx(x.dtype), node.attrs["format"]
    fits = name == "deft16" or name.startswith("deft8:") or (name == "half" and kind == TensorProto.FLOAT16)
    return fits and kind in _TYPES and node.attrs["output_type"] in (kind, TensorProto.FLOAT)


def _behind(node: gs.Node, reserved: Reserved) -> gs.Node | None:
    """The layer that goes on from `node`, or None."""
    y = node.outputs[0]
    if node.attrs["output_type"] not in _TYPES or y in reserved or len(y.outputs) != 1:
        return None
    user = y.outputs[0]
    alone = [i for i, t in enumerate(user.inputs) if t is y] == [0]
    return user if alone and _is_plain(user) else None


def _before(node: gs.Node, reserved: Reserved) -> gs.Node | None:
    makers = node.inputs[0].inputs
    found = makers[0] if len(makers) == 1 and _is_plain(makers[0]) else None
    return found if found is not None and _behind(found, reserved) is node else None


def _join(graph: gs.Graph, nodes: list[gs.Node], reserved: Reserved) -> Joined:
    first, last = nodes[0], nodes[-1]
    name = unused_name(f"{first.name}..{last.name}")
    zero = np.zeros((), tensor_dtype_to_np_dtype(last.attrs["output_type"]))
    inputs = [_source(first, reserved), stored_as(f"{name}/zero", zero)]
    for node in nodes:
        inputs += node.inputs[_CONSTANTS]
    y = last.outputs[0]
    attributes = mlp_attributes([node.attrs for node in nodes])
    for node in nodes:
        node.inputs.clear()
        node.outputs.clear()
        graph.nodes.remove(node)
    graph.nodes.append(gs.Node(OPERATOR, name, attributes, inputs, [y], domain=DOMAIN))
    return Joined(name, tuple(node.name for node in nodes))


def _source(first: gs.Node, reserved: Reserved) -> gs.Tensor:
    """What the node reads: behind a Cast from float32 that nothing else reads, what that reads."""
    x = first.inputs[0]
    cast = x.inputs[0] if len(x.inputs) == 1 else None
    if cast is None or cast.op != "Cast" or not is_standard(cast) or len(x.outputs) > 1 or x in reserved:
        return x
    source = cast.inputs[0]
    wide = source.dtype is not None and dtype_to_onnx(source.dtype) == TensorProto.FLOAT
    return source if wide and not isinstance(source, gs.Constant) else x
