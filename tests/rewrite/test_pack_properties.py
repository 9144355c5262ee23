"""Whatever the graph, the formats and what is eliminated: DeftGemm nodes compute what the decoded weights do."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from generator import Builder, random_mask
from models import Array, Feed, assert_same, distance, feed_for, mask, prepare, run
from test_absorb_properties import batch_size

from deftonnx import evaluation
from deftonnx.formats import FORMAT_NAMES
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.rewrite.absorb import absorb
from deftonnx.rewrite.eliminate import eliminate
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.fuse import fuse
from deftonnx.rewrite.narrow import OLDEST_OPSET, TYPES, narrow
from deftonnx.rewrite.normalise import infer_shapes
from deftonnx.rewrite.pack import blocks_kept, decode, pack, pack_weights, refuse

CASES = 480
NEAR = {"float16": 2e-2, "bfloat16": 0.15}
CHUNK = 12


def check(seed: int) -> int:
    """One random graph; the number of its DeftGemm nodes."""
    rng = np.random.default_rng([seed, 2])
    proto = Builder(seed).build(steps=int(rng.integers(4, 22)))
    feed = feed_for(proto, seed, N=batch_size(proto, rng))
    graph, layers = prepare(proto)
    for layer in layers:
        kept = random_mask(layer.kept.shape, layer.shares_choice, rng, graph.opset)
        if kept is not None:
            mask(layer, kept)
    absorb(graph, layers)
    formats = {x.name: str(rng.choice(FORMAT_NAMES)) for x in layers if refuse(x, graph.opset) is None}
    in_kernel = {
        x.name
        for x in layers
        if x.name in formats and not x.kept.all() and blocks_kept(x.kept[0, 0]) is not None and rng.random() < 0.8
    }
    eliminate(graph, [layer for layer in layers if layer.name not in in_kernel])
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    weights = pack_weights(layers, formats, in_kernel)
    decode(layers, weights, in_kernel)
    want = run(finish(graph, proto, {}).whole(), feed)
    infer_shapes(graph)
    assert pack(graph, layers, weights, in_kernel) == bool(formats)
    fuse(graph)
    small = finish(graph, proto, {}).whole()
    onnx.checker.check_model(small)
    assert_same(run(small, feed), want, 2e-5)
    check_narrow(graph, proto, feed, want, "float16" if seed % 2 or graph.opset < OLDEST_OPSET else "bfloat16")
    return sum(is_gemm(node.domain, node.op_type) for node in small.graph.node)


def check_narrow(graph: gs.Graph, proto: onnx.ModelProto, feed: Feed, want: list[Array], asked: str) -> None:
    """Whatever is narrow, the model loads, has the types that were asked for, and is near."""
    infer_shapes(graph)
    assert narrow(graph, asked, {}) == []
    small = finish(graph, proto, {}).whole()
    onnx.checker.check_model(small)
    assert {t.type.tensor_type.elem_type for t in (*small.graph.input, *small.graph.output)} == {TYPES[asked][1]}
    got = evaluation.run(evaluation.session(small), [feed])
    for name, array in zip(got, want, strict=True):
        if array.size:
            assert distance(got[name].astype(np.float32), array) <= NEAR[asked]


@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_packed_graph_computes_what_the_decoded_weights_do(first: int) -> None:
    assert sum(check(seed) for seed in range(first, first + CHUNK)) > 0
