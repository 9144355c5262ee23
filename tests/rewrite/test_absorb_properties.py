"""Whatever the graph and whatever is eliminated: absorption and elimination do not change what it computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from generator import Builder, random_mask
from models import assert_same, export_model, feed_for, mask, prepare, reduce, run

from deftonnx.layers import LinearLayer

CASES = 480
CHUNK = 12


def batch_size(proto: onnx.ModelProto, rng: np.random.Generator) -> int:
    """Batches of none, one or three; not of none where ONNX Runtime itself cannot take it."""
    size = int(rng.choice([0, 1, 3], p=[0.1, 0.3, 0.6]))
    strict = any(node.op_type in ("Reshape", "MatMul") for node in proto.graph.node)
    return 3 if size == 0 and strict else size


def check(seed: int) -> None:
    """One random graph with random masks."""
    rng = np.random.default_rng([seed, 1])
    proto = Builder(seed).build(steps=int(rng.integers(4, 22)))
    feed = feed_for(proto, seed, N=batch_size(proto, rng))
    graph, layers = prepare(proto)
    for layer in layers:
        if rng.random() < 0.3:
            kill(layer, rng)
        kept = random_mask(layer.kept.shape, layer.shares_choice, rng, graph.opset)
        if kept is not None:
            mask(layer, kept)
    masked = export_model(graph, proto).whole()
    reduced = reduce(graph, layers, proto, absorbing=bool(rng.random() < 0.9))
    assert_same(run(reduced, feed), run(masked, feed), 2e-5)


def kill(layer: LinearLayer, rng: np.random.Generator) -> None:
    """Make some synapse vectors zero that nothing has eliminated."""
    dead = rng.random((layer.groups, 1, layer.channels, 1)) < rng.choice([0.2, 0.6, 1.0])
    weight = layer.weight().reshape(layer.groups, layer.taps, layer.channels, -1)
    layer.store(np.where(dead, 0, weight).reshape(layer.groups, layer.K, -1), layer.bias())


@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_reduced_graph_computes_what_the_masked_one_does(first: int) -> None:
    for seed in range(first, first + CHUNK):
        check(seed)
