"""A residual that a layer normalisation reads moves from the product before it into SkipLayerNormalization.

That operator of ONNX Runtime adds, normalises and writes both, the sum only where it is read elsewhere, in one pass.
Its LayerNormalization alone takes longer on the GPU, so the residual costs nothing there.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from deftonnx.formats.layer_norm_function import OPERATOR as LAYER_NORM
from deftonnx.formats.operator_function import DOMAIN
from deftonnx.layers.linear import is_standard, unused_name
from deftonnx.rewrite.fuse import is_deft_gemm
from deftonnx.rewrite.reserved import Reserved

CONTRIB = "com.microsoft"
OPERATOR = "SkipLayerNormalization"
_KEPT, _RESIDUAL = 4, 5
_RANKS = (2, 3)


def fuse_skip_norms(graph: gs.Graph) -> bool:
    """Rewrite in place where shapes are known; True if anything changed."""
    found = [(norm, gemm) for norm in graph.nodes if (gemm := _product_before(norm)) is not None]
    taken: set[int] = set()
    reserved = Reserved(graph)
    for norm, gemm in found:
        if id(gemm) not in taken:
            taken.add(id(gemm))
            _rewrite(norm, gemm, reserved)
    if found:
        domains = list(graph.import_domains or [])
        if all(domain.domain != CONTRIB for domain in domains):
            graph.import_domains = [*domains, onnx.helper.make_opsetid(CONTRIB, 1)]
        graph.toposort()
    return bool(found)


def _product_before(norm: gs.Node) -> gs.Node | None:
    """The DeftGemm with a residual whose sum `norm` normalises along its last axis."""
    if norm.op != LAYER_NORM or not (is_standard(norm) or norm.domain == DOMAIN) or len(norm.inputs) != 3:
        return None
    if len(norm.outputs) != 1:
        return None
    x = norm.inputs[0]
    if len(x.inputs) != 1 or not is_deft_gemm(x.inputs[0]) or x.shape is None or len(x.shape) not in _RANKS:
        return None
    gemm = x.inputs[0]
    if len(gemm.inputs) <= _RESIDUAL or isinstance(gemm.inputs[_RESIDUAL], gs.Constant):
        return None
    if gemm.attrs["activation"] != "none" or norm.attrs.get("axis", -1) not in (-1, len(x.shape) - 1):
        return None
    if norm.attrs.get("stash_type", 1) != 1 or x.dtype != np.float32:
        return None
    vectors = all(isinstance(t, gs.Constant) and list(t.shape) == [x.shape[-1]] for t in norm.inputs[1:])
    return gemm if vectors and isinstance(x.shape[-1], int) else None


def _rewrite(norm: gs.Node, gemm: gs.Node, reserved: Reserved) -> None:
    """`norm` also writes the sum where something else reads it."""
    is_read = len(gemm.outputs[0].outputs) > 1 or gemm.outputs[0] in reserved
    total, residual = gemm.outputs[0], gemm.inputs[_RESIDUAL]
    product = gs.Variable(unused_name(f"{total.name}/product"), total.dtype, total.shape)
    no_blocks = int(np.prod(gemm.inputs[_KEPT].shape)) == 0
    gemm.inputs = gemm.inputs[: _KEPT if no_blocks else _RESIDUAL]
    gemm.outputs = [product]
    norm.inputs = [product, residual, *norm.inputs[1:]]
    norm.outputs = [norm.outputs[0]]
    if is_read:
        norm.outputs += [gs.Variable.empty(), gs.Variable.empty(), total]
    norm.op, norm.domain, norm.attrs = OPERATOR, CONTRIB, {"epsilon": float(norm.attrs.get("epsilon", 1e-5))}
