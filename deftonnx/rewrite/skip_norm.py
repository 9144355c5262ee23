"""A residual that a layer normalisation reads moves from the product before it into SkipLayerNormalization.

That operator of ONNX Runtime adds, normalises and writes both, the sum only where it is read elsewhere, in one pass.
Its LayerNormalization alone takes longer on the GPU, so the residual costs nothing there. A norm by the root of the
mean square (root_mean_square.py) becomes SkipSimplifiedLayerNormalization in the same way. Where no residual comes
before it, x + x is normalised with four times the epsilon, which is the norm of x by one kernel.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from deftonnx.formats.layer_norm_function import OPERATOR as LAYER_NORM
from deftonnx.formats.operator_function import DOMAIN
from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.fuse import is_deft_gemm
from deftonnx.rewrite.order import sort_nodes
from deftonnx.rewrite.reserved import Reserved
from deftonnx.rewrite.root_mean_square import RootMeanSquare, root_mean_squares

CONTRIB = "com.microsoft"
OPERATOR = "SkipLayerNormalization"
SIMPLIFIED = "SkipSimplifiedLayerNormalization"
_KEPT, _RESIDUAL = 4, 5
_RANKS = (2, 3)
_WITH_HEADS = 4


def fuse_skip_norms(graph: gs.Graph) -> bool:
    """Rewrite in place where shapes are known; True if anything changed."""
    found = [(norm, gemm) for norm in graph.nodes if (gemm := _normalised(norm)) is not None]
    roots = [norm for norm in root_mean_squares(graph) if _is_served(norm.x) or _has_heads(norm.x)]
    simple = [(norm, _product_before(norm.x)) for norm in roots]
    taken: set[int] = set()
    reserved = Reserved(graph)
    for norm, gemm in found:
        if id(gemm) not in taken:
            taken.add(id(gemm))
            _rewrite(norm, gemm, reserved)
    for root, gemm in simple:
        alone = gemm is None or id(gemm) in taken
        taken.add(id(gemm))
        _rewrite_simplified(graph, root, None if alone else gemm, reserved)
    if found or simple:
        domains = list(graph.import_domains or [])
        if all(domain.domain != CONTRIB for domain in domains):
            graph.import_domains = [*domains, onnx.helper.make_opsetid(CONTRIB, 1)]
        sort_nodes(graph.cleanup(remove_unused_graph_inputs=False))
    return bool(found or simple)


def _normalised(norm: gs.Node) -> gs.Node | None:
    """The DeftGemm with a residual whose sum `norm` normalises along its last axis."""
    if norm.op != LAYER_NORM or not (is_standard(norm) or norm.domain == DOMAIN) or len(norm.inputs) != 3:
        return None
    if len(norm.outputs) != 1:
        return None
    x = norm.inputs[0]
    gemm = _product_before(x)
    if gemm is None or norm.attrs.get("axis", -1) not in (-1, len(x.shape) - 1) or norm.attrs.get("stash_type", 1) != 1:
        return None
    vectors = all(isinstance(t, gs.Constant) and list(t.shape) == [x.shape[-1]] for t in norm.inputs[1:])
    return gemm if vectors else None


def _product_before(x: gs.Tensor) -> gs.Node | None:
    """The DeftGemm with a residual that makes `x`."""
    if len(x.inputs) != 1 or not is_deft_gemm(x.inputs[0]) or not _is_served(x):
        return None
    gemm = x.inputs[0]
    if len(gemm.inputs) <= _RESIDUAL or isinstance(gemm.inputs[_RESIDUAL], gs.Constant):
        return None
    return gemm if gemm.attrs["activation"] == "none" else None


def _rewrite(norm: gs.Node, gemm: gs.Node, reserved: Reserved) -> None:
    """`norm` also writes the sum where something else reads it."""
    product, residual, total = _without_residual(gemm, norm, reserved)
    norm.inputs = [product, residual, *norm.inputs[1:]]
    norm.outputs = [norm.outputs[0], *total]
    norm.op, norm.domain, norm.attrs = OPERATOR, CONTRIB, {"epsilon": float(norm.attrs.get("epsilon", 1e-5))}


def _is_served(x: gs.Tensor) -> bool:
    """True where ONNX Runtime's operators take `x`."""
    return x.shape is not None and len(x.shape) in _RANKS and x.dtype == np.float32 and isinstance(x.shape[-1], int)


def _has_heads(x: gs.Tensor) -> bool:
    """True for (batch, length, heads, head size), whose heads are rows as others."""
    return x.shape is not None and len(x.shape) == _WITH_HEADS and all(isinstance(size, int) for size in x.shape[2:])


def _rewrite_simplified(graph: gs.Graph, norm: RootMeanSquare, gemm: gs.Node | None, reserved: Reserved) -> None:
    """The norm with the residual of `gemm`, or where that is None, without one."""
    for node in norm.nodes:
        node.inputs.clear()
        node.outputs.clear()
    y = norm.y
    if gemm is None:
        total: list[gs.Variable] = []
        x = norm.x
        if _has_heads(x):
            heads, size = x.shape[2:]
            x = _reshaped(graph, x, [0, -1, size], gs.Variable(unused_name(f"{y.name}/rows_of_x"), x.dtype))
            y = gs.Variable(unused_name(f"{y.name}/rows"), y.dtype, x.shape)
            _reshaped(graph, y, [0, -1, heads, size], norm.y)
        first, second, epsilon = x, x, 4 * norm.epsilon
    else:
        first, second, total = _without_residual(gemm, None, reserved)
        epsilon = norm.epsilon
    name = unused_name(f"{norm.y.name}/root_mean_square")
    scale = gs.Constant(f"{name}/scale", norm.scale)
    inputs, outputs = [first, second, scale], [y, *total]
    graph.nodes.append(gs.Node(SIMPLIFIED, name, {"epsilon": epsilon}, inputs, outputs, domain=CONTRIB))


def _reshaped(graph: gs.Graph, x: gs.Tensor, target: list[int], y: gs.Variable) -> gs.Variable:
    if y.shape is None:
        y.shape = [x.shape[0], None, *target[2:]]
    constant = gs.Constant(unused_name(f"{y.name}/target"), np.array(target))
    graph.nodes.append(gs.Node("Reshape", unused_name(f"{y.name}/reshape"), {}, [x, constant], [y]))
    return y


def _without_residual(
    gemm: gs.Node, norm: gs.Node | None, reserved: Reserved
) -> tuple[gs.Variable, gs.Tensor, list[gs.Variable]]:
    """The product alone, the residual that is taken from it, and the outputs of a norm behind its first: with the sum
    if something other than `norm` reads it."""
    total, residual = gemm.outputs[0], gemm.inputs[_RESIDUAL]
    is_read = any(user is not norm for user in total.outputs) or total in reserved
    product = gs.Variable(unused_name(f"{total.name}/product"), total.dtype, total.shape)
    no_blocks = int(np.prod(gemm.inputs[_KEPT].shape)) == 0
    gemm.inputs = gemm.inputs[: _KEPT if no_blocks else _RESIDUAL]
    gemm.outputs = [product]
    return product, residual, [gs.Variable.empty(), gs.Variable.empty(), total] if is_read else []
