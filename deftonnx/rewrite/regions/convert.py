"""Rewrite the nodes of an assignment to 16 bits: constants converted, Casts only where a region ends.

Graph inputs and outputs, and what the bodies of If, Loop and Scan read, keep their names and types.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from deftonnx.formats.gemm_function import is_gemm
from deftonnx.layers.linear import stored_as, unused_name
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.output_types import has_residual, tell_output_type
from deftonnx.rewrite.regions.assign import (
    HALF_LIMIT,
    Assignment,
    changing_inputs,
    changing_outputs,
    is_float,
)
from deftonnx.rewrite.regions.kernels import BFLOAT16, FLOAT16, OWN, kernel
from deftonnx.rewrite.regions.repack import to_deft16
from deftonnx.rewrite.reserved import Reserved

Array = np.ndarray[Any, Any]
TYPES: dict[str, tuple[Any, int]] = {
    FLOAT16: (np.float16, TensorProto.FLOAT16),
    BFLOAT16: (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
    "float32": (np.float32, TensorProto.FLOAT),
}
MASKED = -0.5 * HALF_LIMIT
"""What stands for minus infinity in a float16 mask: a score added to it stays finite."""


def convert(graph: gs.Graph, assignment: Assignment) -> bool:
    """Apply `assignment` in place; True if anything changed. Types of tensors have to be known."""
    if not assignment.kinds:
        return False
    _Conversion(graph, assignment).run()
    _keep_apart(graph)
    sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return True


def _keep_apart(graph: gs.Graph) -> None:
    """Put a Reshape, which costs nothing, between a DeftGemm and a 16-bit Transpose that moves the first axis to the
    place before the last.

    ONNX Runtime's CPU provider (1.31) makes one product of such a Transpose, a Cast and a MatMul, as the function body
    begins, and ends the process where the size of the axis is free.
    """
    for node in list(graph.nodes):
        x = node.inputs[0] if is_gemm(node.domain, node.op) else None
        if x is None or x.dtype == np.float32 or len(x.inputs) != 1 or x.inputs[0].op != "Transpose":
            continue
        perm = x.inputs[0].attrs.get("perm") or []
        if len(perm) > 2 and perm[-2:] == [0, len(perm) - 1]:
            name = unused_name(f"{node.name}/apart")
            shape = gs.Constant(f"{name}/shape", np.array([0] * (len(perm) - 1) + [-1], np.int64))
            apart = gs.Variable(name, x.dtype, x.shape)
            graph.nodes.append(gs.Node("Reshape", name, {}, [x, shape], [apart]))
            node.inputs[0] = apart


class _Conversion:
    """`made` maps float32 tensors that a converted node makes to their 16-bit stand-ins and types."""

    def __init__(self, graph: gs.Graph, assignment: Assignment) -> None:
        self.graph, self.kinds, self.masks = graph, assignment.kinds, assignment.masks
        self.reserved = Reserved(graph)
        self.made: dict[int, tuple[gs.Variable, str]] = {}
        self.casts: dict[tuple[int, str, bool], gs.Tensor] = {}
        self.repacked: dict[int, gs.Constant] = {}

    def run(self) -> None:
        nodes = list(self.graph.nodes)
        reads = {
            id(node): set(changing_inputs(node, spec)) if id(node) in self.kinds else set()
            for node in nodes
            if (spec := kernel(node)) is not None
        }
        last = {id(node) for node in nodes if id(node) in self.kinds and self._writes_float32(node, reads)}
        for node in nodes:
            if id(node) in last:
                tell_output_type(node)
            elif id(node) in self.kinds:
                self._make_outputs(node, self.kinds[id(node)])
        for node in nodes:
            own = self.kinds.get(id(node), "float32")
            inputs = list(node.inputs)
            for i, tensor in enumerate(inputs):
                wanted = own if i in reads.get(id(node), ()) else "float32"
                inputs[i] = self._as(tensor, wanted, (id(node), id(tensor)) in self.masks)
            if any(a is not b for a, b in zip(inputs, node.inputs, strict=True)):
                node.inputs = inputs
            if own != "float32" and node.domain == OWN and id(node) not in last:
                node.attrs["output_type"] = TYPES[own][1]
            if own == BFLOAT16 and node.domain == OWN:
                to_deft16(node, self.repacked)

    def _writes_float32(self, node: gs.Node, reads: dict[int, set[int]]) -> bool:
        """True for a DeftGemm whose output is read in float32 alone: it needs no Cast behind it."""
        if not is_gemm(node.domain, node.op) or has_residual(node):
            return False
        y = node.outputs[0]
        return is_float(y) and not any(
            t is y and i in reads.get(id(user), ()) for user in y.outputs for i, t in enumerate(user.inputs)
        )

    def _make_outputs(self, node: gs.Node, kind: str) -> None:
        """Give `node` 16-bit outputs; a tensor that must stay float32 is cast from its stand-in."""
        spec = kernel(node)
        assert spec is not None
        outputs, late = list(node.outputs), list[gs.Variable]()
        for i in changing_outputs(node, spec):
            wide = outputs[i]
            outputs[i] = gs.Variable(unused_name(f"{wide.name}/{kind}"), TYPES[kind][0], wide.shape)
            self.made[id(wide)] = (outputs[i], kind)
            if wide in self.reserved:
                late.append(wide)
        node.outputs = outputs
        for wide in late:
            self._insert(self.made[id(wide)][0], wide, "float32")

    def _as(self, tensor: gs.Tensor, wanted: str, mask: bool) -> gs.Tensor:
        """`tensor`, a float32 tensor of the old graph, in the type `wanted`."""
        stand_in, have = self.made.get(id(tensor), (tensor, "float32"))
        if wanted == have:
            return stand_in
        if wanted == "float32" and tensor.inputs:  # cast back already
            return tensor
        key = (id(tensor), wanted, mask)
        if key not in self.casts:
            self.casts[key] = self._cast(tensor, stand_in, wanted, mask and have == "float32" and wanted == FLOAT16)
        return self.casts[key]

    def _cast(self, tensor: gs.Tensor, source: gs.Tensor, wanted: str, mask: bool) -> gs.Tensor:
        dtype, name = TYPES[wanted][0], unused_name(f"{tensor.name}/{wanted}")
        if isinstance(tensor, gs.Constant):
            values = np.maximum(tensor.values, np.float32(MASKED)) if mask else tensor.values
            return constant(name, values, wanted)
        if mask:
            floor = gs.Constant(unused_name(f"{tensor.name}/mask_floor"), np.array(MASKED, np.float32))
            bounded = gs.Variable(unused_name(f"{tensor.name}/bounded"), np.float32, tensor.shape)
            self.graph.nodes.append(gs.Node("Max", unused_name(f"{tensor.name}/bound"), {}, [source, floor], [bounded]))
            source, name = bounded, unused_name(f"{tensor.name}/mask")
        result = gs.Variable(name, dtype, tensor.shape)
        self._insert(source, result, wanted)
        return result

    def _insert(self, source: gs.Tensor, result: gs.Variable, wanted: str) -> None:
        name = unused_name(f"{result.name}/{wanted}/cast")
        self.graph.nodes.append(gs.Node("Cast", name, {"to": TYPES[wanted][1]}, [source], [result]))


def constant(name: str, values: Array, kind: str) -> gs.Constant:
    """A constant of the 16-bit type `kind`."""
    if kind != BFLOAT16:
        with np.errstate(over="ignore"):
            return gs.Constant(name, values.astype(TYPES[kind][0]))
    return stored_as(name, values.astype(ml_dtypes.bfloat16))
