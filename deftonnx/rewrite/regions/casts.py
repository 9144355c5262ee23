"""Casts that are left between regions, and at the ends of a model that has 16-bit inputs or outputs."""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx

from deftonnx.layers.linear import is_standard
from deftonnx.rewrite.fuse import is_deft_gemm
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.output_types import has_residual, tell_output_types
from deftonnx.rewrite.regions.convert import TYPES
from deftonnx.rewrite.reserved import Reserved


def join_casts(graph: gs.Graph) -> bool:
    """Let a Cast of what was cast from its own type to float32 read the original, and a DeftGemm write what a Cast
    makes of its output, in place; no Cast to the same type is left. True if anything changed."""
    changed, reserved = False, Reserved(graph)
    casts = [node for node in graph.nodes if node.op == "Cast" and is_standard(node)]
    for cast in casts:
        source = cast.inputs[0]
        before = source.inputs[0] if len(source.inputs) == 1 else None
        if before is None or before.op != "Cast" or before.attrs["to"] != TensorProto.FLOAT:
            continue
        original = before.inputs[0]
        if [kind for dtype, kind in TYPES.values() if original.dtype == dtype] == [cast.attrs["to"]]:
            cast.inputs = [original]
            changed = True
    for cast in casts:
        done = _pass(cast, reserved) if _is_idle(cast) else _write_at_once(cast, reserved)
        changed = changed or done
    if changed:
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
        tell_output_types(graph)
    return changed


def _is_idle(cast: gs.Node) -> bool:
    kind = cast.inputs[0].dtype
    return kind is not None and dtype_to_onnx(kind) == cast.attrs["to"]


def _pass(cast: gs.Node, reserved: Reserved) -> bool:
    """Without a Cast to the same type: its readers read the source, or what makes that makes the result."""
    source, result = cast.inputs[0], cast.outputs[0]
    if result in reserved:
        return _make_result(cast, reserved)
    for user in list(result.outputs):
        user.inputs = [source if t is result else t for t in user.inputs]
    cast.inputs.clear()
    cast.outputs.clear()
    return True


def _write_at_once(cast: gs.Node, reserved: Reserved) -> bool:
    """Without a Cast of what a DeftGemm makes for it alone."""
    source, narrow = cast.inputs[0], [kind for _, kind in TYPES.values()]
    maker = source.inputs[0] if len(source.inputs) == 1 else None
    if maker is None or not is_deft_gemm(maker) or has_residual(maker) or cast.attrs["to"] not in narrow:
        return False
    kind = cast.attrs["to"]
    if len(source.outputs) != 1 or not _make_result(cast, reserved):
        return False
    maker.attrs["output_type"] = kind
    return True


def _make_result(cast: gs.Node, reserved: Reserved) -> bool:
    """Let the node that makes the source of `cast` make its result instead, unless the source is needed itself."""
    source, result = cast.inputs[0], cast.outputs[0]
    if len(source.inputs) != 1 or source in reserved:
        return False
    cast.inputs.clear()
    cast.outputs.clear()
    maker = source.inputs[0]
    maker.outputs = [result if t is source else t for t in maker.outputs]
    for user in list(source.outputs):
        user.inputs = [result if t is source else t for t in user.inputs]
    return True
